"""Adapters to what computes: load, execute, unload.

Two of the libraries behind them report to their makers, without being asked, unless they are
told not to before they are imported. What a server does with a model is its owner's business,
so this package tells them, and everything here imports it first.
"""

import os
import sys

# ONNX Runtime, since 1.29 on Linux too: every session, with names and hashes of its model, and
# a device id on the disk. https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# OpenVINO: an event for every import, and a client id in the home folder. There is no setting;
# where the package that sends cannot be imported, OpenVINO goes on with a stub of its own.
# https://github.com/openvinotoolkit/telemetry
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # how Python says so
