"""What the example's README shows is what its model answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.unit.runtimes.python_models import load

FOLDER = Path(__file__).parents[3] / "examples" / "python_model"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_the_readme_s_request_has_the_readme_s_answer(isolation):
    blocks = re.findall(r"```json\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    request, expected = map(json.loads, blocks)
    (given,) = request["inputs"]
    texts = np.array([text.encode() for text in given["data"]], object)

    model = load(FOLDER / "model.py", isolation=isolation)
    try:
        assert [(spec.name, spec.datatype) for spec in model.inputs] == [("text", "BYTES")]
        answer = model.execute([texts])
        answered = [
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": list(array.shape),
                "data": [v.decode() if isinstance(v, bytes) else v for v in array.tolist()],
            }
            for spec, array in zip(model.outputs, answer, strict=True)
        ]
    finally:
        model.unload()

    for shown, real in zip(expected["outputs"], answered, strict=True):
        if shown["datatype"] == "FP32":
            shown["data"] = pytest.approx(shown["data"])
        assert real == shown
