from __future__ import annotations

import threading

import numpy as np
import pytest

from headrace.engine.calibrate import calibrate
from headrace.errors import InferenceFailed
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.loops import may_be_endless
from headrace.runtimes.onnx import OnnxRuntime
from headrace.testing import onnx_models

ROWS = np.ones((2, 4), np.float32)


def load(folder, content):
    path = folder / "model.onnx"
    path.write_bytes(content)
    return OnnxRuntime().load(Artifact("m", "1", path, folder, "onnx"), InstanceConfig())


def test_only_a_graph_without_a_loop_runs_on_the_event_loop(tmp_path):
    hop_ns = 10**9  # more than any of them takes
    for content, inline in ((onnx_models.identity("FP32"), True), (onnx_models.endless(), False)):
        model = load(tmp_path, content)
        assert model.may_be_endless() is not inline
        profile = calibrate(model, None, hop_ns=hop_ns, budget_ns=1)
        assert (profile.inline_rows > 0) is inline


def test_what_cannot_be_searched_counts_as_endless(tmp_path):
    assert may_be_endless(tmp_path / "absent")
    (tmp_path / "empty").touch()
    assert may_be_endless(tmp_path / "empty")
    (tmp_path / "model.xml").write_text('<layer id="3" type="Loop" version="opset5">')
    assert may_be_endless(tmp_path / "model.xml")


@pytest.mark.slow
def test_one_run_is_interrupted_and_the_next_is_not(tmp_path):
    model = load(tmp_path, onnx_models.endless())
    failures: list[InferenceFailed] = []
    began = threading.Event()

    def hang() -> None:
        model.execute([ROWS])  # so that there is something to interrupt
        began.set()
        with pytest.raises(InferenceFailed, match="terminate") as caught:
            model.execute([-ROWS])
        failures.append(caught.value)

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    began.wait()
    while thread.is_alive():  # it may not have begun when it is interrupted first
        model.interrupt(thread.ident, "")
        thread.join(0.1)
    assert len(failures) == 1
    assert model.execute([ROWS])[0].tolist() == ROWS.tolist()
