"""The service: one .onnx file in, boxes over HTTP out. Needs no torch and none of the other packages here."""

import os

# The official ONNX Runtime builds report to their maker since 1.29, and decide on it when they are first imported.
# A service that is given people's pictures tells nobody of it unless its operator sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
