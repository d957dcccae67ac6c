"""Instances of a Python model told apart: each is always the same object or process."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from headrace.errors import InstanceDied
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.python import PythonRuntime

WHO = """
import itertools, os
import numpy as np
from typing import Annotated

numbers = itertools.count()
Row = Annotated[np.ndarray, "INT64[N]"]

class Model:
    def load(self):
        self.number = next(numbers)
        self.calls = 0

    def predict(self, x: Row) -> tuple[Row, Row]:
        if x[0] == -1:
            os._exit(1)
        self.calls += 1
        return np.full_like(x, os.getpid() + self.number), np.full_like(x, self.calls)
"""


@pytest.fixture(params=["thread", "process"])
def model(request, tmp_path):
    model = load(tmp_path, request.param)
    yield model
    model.unload()


@pytest.fixture
def processes(tmp_path):
    model = load(tmp_path, "process")
    yield model
    model.unload()


def load(folder, isolation):
    path = folder / "model.py"
    path.write_text(WHO)
    options = {"isolation": isolation, "restart_delay_s": 0.01}
    artifact = Artifact("who", "1", path, folder, "python", options=options)
    return PythonRuntime().load(artifact, InstanceConfig(concurrency=3))


def ask(instance, value=0):
    return [int(output[0]) for output in instance.execute([np.array([value])])]


def test_each_instance_is_one_and_no_two_are_the_same(model):
    instances = [model.instance(index) for index in range(3)]
    answers = [[ask(instance) for _ in range(3)] for instance in instances]
    assert len({who for rounds in answers for who, _ in rounds}) == 3
    for rounds in answers:
        assert len({who for who, _ in rounds}) == 1
        assert [calls for _, calls in rounds] == [1, 2, 3]


def test_an_instance_has_the_signature_of_its_model(model):
    instance = model.instance(1)
    assert (instance.inputs, instance.outputs) == (model.inputs, model.outputs)
    assert instance.concurrency == 1
    assert not instance.lost


def test_instances_do_not_wait_for_one_another(processes):
    together = threading.Barrier(3)
    answers = []

    def run(index):
        instance = processes.instance(index)
        together.wait(30)
        answers.append([ask(instance)[1] for _ in range(20)][-1])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [20, 20, 20]


def test_one_that_died_is_lost_until_that_is_known(processes):
    instance, other = processes.instance(0), processes.instance(1)
    first, calls = ask(other)
    who, _ = ask(instance)
    with pytest.raises(InstanceDied):
        ask(instance, -1)
    assert instance.lost
    assert not other.lost
    with pytest.raises(InstanceDied, match="was replaced"):
        ask(instance)
    instance.renew()
    assert not instance.lost
    again, calls = ask(instance)
    assert again != who
    assert calls == 1
    assert ask(other) == [first, 2]
