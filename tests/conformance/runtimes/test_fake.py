"""The fake keeps the contract that it stands in for."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.testing import FakeModel, FakeRuntime, ModelCase, RuntimeKit
from headrace.testing.fakes import X, Y


class StrictFakeRuntime(FakeRuntime):
    """Refuses what real runtimes refuse."""

    def load(self, artifact: Artifact, config: InstanceConfig) -> FakeModel:
        if artifact.options:
            raise ModelLoadError(f"model '{artifact.name}' has options")
        model = super().load(artifact, config)
        model.fail_on(lambda inputs: inputs[0].ndim != 2)
        return model


class TestFakeRuntime(RuntimeKit):
    def make_runtime(self):
        return StrictFakeRuntime()

    def cases(self, folder):
        return [
            ModelCase(
                artifact=Artifact("double", "1", folder, folder, "fake"),
                make_inputs=lambda rows, rng: [rng.random((rows, 4), np.float32)],
                expected=lambda inputs: [inputs[0] * 2],
                inputs=(X,),
                outputs=(Y,),
            )
        ]

    def broken_artifacts(self, folder):
        return [Artifact("odd", "1", folder, folder, "fake", options={"colour": "blue"})]


class Careless(FakeRuntime):
    """Everything that a careless runtime does wrong, one at a time."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def load(self, artifact: Artifact, config: InstanceConfig) -> FakeModel:
        model = FakeModel(concurrency=config.concurrency)
        if self.fault != "takes anything":
            model.fail_on(lambda inputs: inputs[0].ndim != 2)
        buffer = np.zeros((64, 4), np.float32)
        computes = {
            "wrong order": lambda x: [(x * 2)[::-1]],
            "wrong dtype": lambda x: [x.astype(np.float64) * 2],
            "reuses its buffer": lambda x: [np.multiply(x, 2, out=buffer[: len(x)])],
            "changes its input": lambda x: [np.multiply(x, 2, out=x).copy()],
            "one output too many": lambda x: [x * 2, x],
            "drops a row": lambda x: [x[:-1] * 2],
        }
        model.compute = computes.get(self.fault, model.compute)
        return model


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("wrong order", "test_answers_are_right_at_every_batch_size"),
        ("wrong dtype", "test_answers_are_right_at_every_batch_size"),
        ("one output too many", "test_answers_are_right_at_every_batch_size"),
        ("drops a row", "test_answers_are_right_at_every_batch_size"),
        ("reuses its buffer", "test_answers_belong_to_the_caller"),
        ("changes its input", "test_inputs_are_only_read"),
        ("takes anything", "test_works_after_it_failed"),
        ("loads anything", "test_what_is_broken_does_not_load"),
    ],
)
def test_the_kit_notices(fault, check, tmp_path):
    class Kit(TestFakeRuntime):
        def make_runtime(self):
            return Careless(fault)

    with pytest.raises((AssertionError, InferenceFailed, ValueError)):
        getattr(Kit(), check)(tmp_path)
