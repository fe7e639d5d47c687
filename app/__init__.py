"""The service: one .onnx file in, boxes over HTTP out. Needs no torch and none of the other packages here."""
