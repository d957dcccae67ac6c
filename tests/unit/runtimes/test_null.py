from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InferenceFailed
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.null import NullRuntime


def load(folder, **options):
    artifact = Artifact("m", "1", folder / "no such file", folder, "null", options=options)
    return NullRuntime().load(artifact, InstanceConfig(concurrency=3))


def test_it_needs_no_file(tmp_path):
    model = load(tmp_path)
    assert model.concurrency == 3
    (y,) = model.execute([np.ones((5, 16), np.float32)])
    assert y.shape == (5, 2)
    assert not y.any()


@pytest.mark.parametrize("shape", [(1, 15), (16,), (1, 16, 1)])
def test_a_shape_that_was_not_declared_is_refused(tmp_path, shape):
    with pytest.raises(InferenceFailed, match="expected"):
        load(tmp_path).execute([np.ones(shape, np.float32)])


def test_free_sizes_follow_the_first_input(tmp_path):
    model = load(
        tmp_path,
        inputs=[{"name": "a", "datatype": "INT8", "shape": [-1, -1]}],
        outputs=[{"name": "b", "datatype": "BF16", "shape": [-1, 7, -1]}],
    )
    (b,) = model.execute([np.ones((2, 3), np.int8)])
    assert b.shape == (2, 7, 1)
    assert b.dtype == np.uint16


def test_only_optional_inputs_may_be_missing(tmp_path):
    tensor = {"datatype": "FP32", "shape": [-1]}
    model = load(
        tmp_path, inputs=[{"name": "a", **tensor}, {"name": "b", **tensor, "optional": True}]
    )
    model.execute([np.ones(2, np.float32), None])
    with pytest.raises(InferenceFailed, match="'a'"):
        model.execute([None, np.ones(2, np.float32)])
