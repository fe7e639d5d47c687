"""Checkpoint → one .onnx file with everything the service needs inside."""
