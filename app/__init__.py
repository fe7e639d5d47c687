"""The service: one .onnx file in, boxes over HTTP out. Needs no torch and none of the other packages here."""

import os

# Since 1.29 the official ONNX Runtime builds report to their maker; whether they do is decided at their first import.
# A service that is given people's pictures must not report unless its operator sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
