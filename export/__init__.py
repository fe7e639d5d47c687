"""Checkpoint → one .onnx file with everything the service needs inside."""

import app  # noqa: F401  it turns off ONNX Runtime's telemetry, which is decided at that package's first import
from model import require

require("onnx", "onnx_ir", "onnxscript")
