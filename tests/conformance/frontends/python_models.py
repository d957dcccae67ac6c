"""Models of Triton's Python backend whose behaviour a test decides."""

from __future__ import annotations

from pathlib import Path

COUNT_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input { name: "N" data_type: TYPE_INT32 dims: 1 }
output { name: "I" data_type: TYPE_INT32 dims: 1 }
"""

COUNT_MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            (n,) = pb_utils.get_input_tensor_by_name(request, "N").as_numpy()
            if n < 0:
                raise ValueError("cannot count down")
            for i in range(n):
                tensor = pb_utils.Tensor("I", np.array([i], np.int32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


GATE_CONFIG = """
backend: "python"
parameters {{ key: "file" value {{ string_value: "{file}" }} }}
input {{ name: "N" data_type: TYPE_INT32 dims: 1 }}
output {{ name: "I" data_type: TYPE_INT32 dims: 1 }}
"""

GATE_MODEL = """
import json
import time
from pathlib import Path
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.file = Path(config["parameters"]["file"]["string_value"])

    def execute(self, requests):
        while not self.file.exists():
            time.sleep(0.002)
        arrays = [pb_utils.get_input_tensor_by_name(r, "N").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("I", array)]) for array in arrays]
"""


def put_count(repository: Path) -> None:
    """``count``: decoupled; answers N with 0, 1, ... up to N - 1."""
    _put(repository / "count", COUNT_CONFIG, COUNT_MODEL)


def put_gate(repository: Path, file: Path) -> None:
    """``gate``: gives back what it got, as soon as there is the file. It is open at first."""
    _put(repository / "gate", GATE_CONFIG.format(file=file), GATE_MODEL)
    file.touch()


def _put(folder: Path, config: str, model: str) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    (folder / "1" / "model.py").write_text(model)
