"""What is concluded from measurements; the stopwatch is replaced by a price list."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.core.events import LearntCost
from headrace.engine import calibrate as module
from headrace.engine import stopwatch
from headrace.engine.calibrate import MEASURED_IN_PART, ROWS_MAX, calibrate, sample_inputs
from headrace.engine.profiles import ProfileStore, StoredProfile
from headrace.engine.selection import choose_threads, keep_faster
from headrace.engine.served import Profile
from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.base import InstanceConfig
from headrace.tasks.base import Padding
from headrace.types import DTYPE_OF, TensorSpec

from .conftest import ScriptedModel

HOP_NS = 50_000
PLENTY_NS = 60_000_000_000


@pytest.fixture
def price(monkeypatch):
    """Sets what an execution of a shape takes, by the clock that calibration reads."""
    clock = {"now": 0, "of": lambda inputs: 1}

    def now_ns():
        return clock["now"]

    def time_once(loaded, inputs):
        loaded.execute(inputs)
        taken = clock["of"](inputs)
        clock["now"] += taken
        return taken

    monkeypatch.setattr(stopwatch, "time_once", time_once)
    monkeypatch.setattr(stopwatch.time, "monotonic_ns", now_ns)
    monkeypatch.setattr(module, "_now_ns", now_ns)

    def set_price(of):
        clock["of"] = of

    return set_price


def by_rows(base, per_row):
    return lambda inputs: base + per_row * inputs[0].shape[0]


def test_a_tiny_model_takes_large_batches_and_runs_inline(price):
    price(by_rows(5_000, 100))
    profile = calibrate(ScriptedModel(), None, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert profile.batchable
    assert profile.max_rows == ROWS_MAX
    assert profile.inline_rows == 256  # 5,000 + 256 x 100 is below the hop


def test_where_batching_does_not_pay_it_is_not_done(price):
    price(by_rows(0, 3_000_000))
    profile = calibrate(ScriptedModel(), None, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert (profile.max_rows, profile.inline_rows, profile.batchable) == (1, 0, True)


def test_only_batches_below_the_hop_run_inline(price):
    price(by_rows(30_000, 4_000))
    profile = calibrate(ScriptedModel(), None, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert profile.inline_rows == 4
    assert profile.max_rows > 4


def test_a_model_that_may_wait_never_runs_on_the_event_loop(price):
    price(by_rows(5_000, 100))
    model = ScriptedModel()
    model.may_run_inline = False
    profile = calibrate(model, None, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert (profile.inline_rows, profile.max_rows) == (0, ROWS_MAX)


def test_texts_are_compared_too(price):
    price(by_rows(1_000, 1))
    model = ScriptedModel()
    model.outputs = (TensorSpec("label", "BYTES", (-1,)),)
    model.compute = lambda x: [np.array([str(row).encode() for row in x], dtype=object)]

    assert calibrate(model, None, hop_ns=HOP_NS, budget_ns=PLENTY_NS).batchable


def test_a_small_budget_is_kept(price):
    price(by_rows(1_000_000_000, 1))
    model = ScriptedModel()
    calibrate(model, None, hop_ns=HOP_NS, budget_ns=1)

    assert max(batch[0].shape[0] for batch in model.batches) == 2  # only what proves batching


def test_rows_that_influence_one_another_are_never_batched(price):
    price(by_rows(1_000, 1))
    model = ScriptedModel()
    model.compute = lambda x: [x - x.mean(axis=0)]
    profile = calibrate(model, None, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert not profile.batchable
    assert "depends on its neighbours" in profile.reason
    assert profile.inline_rows == 1


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (ScriptedModel([TensorSpec("x", "FP32", (4, 2))]), "first dimension of 'x' is not free"),
        (ScriptedModel([TensorSpec("x", "FP32", ())]), "first dimension of 'x' is not free"),
    ],
)
def test_a_fixed_first_dimension_is_no_batch(price, model, reason):
    price(by_rows(1_000, 1) if model.inputs[0].shape else lambda inputs: 1)
    profile = calibrate(model, None, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert not profile.batchable
    assert reason in profile.reason


def test_a_model_that_sums_over_the_batch_is_no_batch(price):
    price(by_rows(1_000, 1))
    model = ScriptedModel()
    model.compute = lambda x: [x.sum(axis=0, keepdims=True)]
    profile = calibrate(model, None, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert "one row per row" in profile.reason


def test_a_model_that_refuses_every_sample_is_served_one_by_one(price):
    model = ScriptedModel([TensorSpec("x", "FP32", (-1, -1))])

    def refuse(x):
        raise InferenceFailed("needs exactly 7")

    model.compute = refuse
    profile = calibrate(model, None, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert not profile.batchable
    assert "needs exactly 7" in profile.reason


def test_open_dimensions_are_found_by_trying(price):
    price(by_rows(1_000, 1))
    model = ScriptedModel([TensorSpec("x", "FP32", (-1, -1))])

    def only_224(x):
        if x.shape[1] != 224:
            raise InferenceFailed("wrong size")
        return [x]

    model.compute = only_224
    assert calibrate(model, None, hop_ns=HOP_NS, budget_ns=PLENTY_NS).batchable


TEXT = [TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("mask", "INT64", (-1, -1))]
PADDING = Padding(values=(0, 0))


def encoder():
    model = ScriptedModel(TEXT)
    model.compute = lambda ids, mask: [((ids + 1) * mask).sum(axis=1, keepdims=True)]
    return model


def by_tokens(overhead, per_token=100_000, *, cache=10**9):
    def of(inputs):
        tokens = inputs[0].size
        return (overhead + tokens) * per_token + max(0, tokens - cache) * per_token

    return of


def test_the_token_budget_is_where_larger_no_longer_pays(price):
    price(by_tokens(18))
    profile = calibrate(encoder(), PADDING, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert profile.batch_tokens == 512  # 1,024 would be 2 % cheaper
    assert profile.overhead_tokens in (15, 16, 17, 18)
    assert (profile.batchable, profile.inline_rows, profile.reason) == (True, 0, "")


def test_a_batch_that_leaves_the_cache_is_too_large(price):
    price(by_tokens(200, cache=512))

    assert calibrate(encoder(), PADDING, hop_ns=HOP_NS, budget_ns=PLENTY_NS).batch_tokens == 512


def test_what_could_not_be_measured_in_time_has_a_default_and_says_so(price):
    price(by_tokens(18, per_token=10_000_000))
    profile = calibrate(encoder(), PADDING, hop_ns=HOP_NS, budget_ns=1)

    assert profile.batch_tokens == module.DEFAULT_BATCH_TOKENS
    assert profile.reason == MEASURED_IN_PART


def test_a_model_that_ignores_its_mask_is_never_padded(price):
    price(by_tokens(18))
    model = encoder()
    model.compute = lambda ids, mask: [ids.sum(axis=1, keepdims=True) + ids.shape[1]]
    profile = calibrate(model, PADDING, hop_ns=HOP_NS, budget_ns=PLENTY_NS)

    assert not profile.batchable
    assert "changes when the row is padded" in profile.reason


@pytest.mark.parametrize("datatype", sorted(DTYPE_OF))
def test_samples_have_the_signatures_shape(datatype):
    spec = TensorSpec("x", datatype, (-1, 3, -1))
    (array,) = sample_inputs([spec], 2, 5)

    assert array.shape == (2, 3, 5)
    assert array.dtype == DTYPE_OF[datatype]


def runtimes(monkeypatch, **costs):
    """Models that take what ``costs`` says, by name, wherever selection looks."""
    models = {name: ScriptedModel() for name in costs}
    taken = {id(models[name]): cost for name, cost in costs.items()}
    for function in ("time_execution", "time_once"):
        monkeypatch.setattr(
            f"headrace.engine.selection.{function}", lambda model, inputs: taken[id(model)]
        )
    return models


def test_the_faster_runtime_is_kept_and_the_other_unloaded(monkeypatch):
    models = runtimes(monkeypatch, reference=500_000, other=100_000)
    name, model = keep_faster(list(models), models.__getitem__, padded=False)

    assert (name, model) == ("other", models["other"])
    assert (models["reference"].unloaded, models["other"].unloaded) == (True, False)


def test_a_fast_runtime_with_other_answers_loses(monkeypatch):
    models = runtimes(monkeypatch, reference=500_000, other=100_000)
    models["other"].compute = lambda x: [x * 2.1]

    assert keep_faster(list(models), models.__getitem__, padded=False)[0] == "reference"


def test_a_fast_runtime_with_other_names_loses(monkeypatch):
    models = runtimes(monkeypatch, reference=500_000, other=100_000)
    models["other"].outputs = (TensorSpec("Identity:0", "FP32", (-1, 2)),)

    assert keep_faster(list(models), models.__getitem__, padded=False)[0] == "reference"


@pytest.mark.parametrize(
    ("cost", "datatype", "padded", "compared"),
    [
        (5_000, "FP32", False, False),  # tiny: nothing to win
        (500_000, "FP32", False, True),
        (500_000, "INT64", False, False),  # another runtime might narrow it
        (500_000, "INT64", True, True),  # token ids
    ],
)
def test_a_second_runtime_is_loaded_only_where_it_may_win(
    monkeypatch, cost, datatype, padded, compared
):
    models = runtimes(monkeypatch, reference=cost, other=1)
    for model in models.values():
        model.inputs = (TensorSpec("x", datatype, (-1, -1)),)
    loads = []

    def load(name):
        loads.append(name)
        return models[name]

    keep_faster(list(models), load, padded=padded)

    assert loads == (["reference", "other"] if compared else ["reference"])


def test_a_runtime_that_cannot_load_it_does_not_matter(price):
    model = ScriptedModel()

    def load(name):
        if name == "broken":
            raise ModelLoadError("no")
        return model

    assert keep_faster(["broken", "works"], load, padded=False) == ("works", model)
    with pytest.raises(ModelLoadError, match="no"):
        keep_faster(["broken"], load, padded=False)


@pytest.mark.parametrize(
    ("apart_ns", "together_ns", "cores", "threads"),
    [
        (200_000_000, 110_000_000, 2, 2),  # slow, and much faster together
        (200_000_000, 150_000_000, 2, 1),  # not worth it
        (20_000_000, 10_000_000, 2, 1),  # quick enough
        (200_000_000, 100_000_000, 1, 1),  # nothing to share
    ],
)
def test_threads_are_measured_where_somebody_waits(
    monkeypatch, apart_ns, together_ns, cores, threads
):
    apart, together = ScriptedModel(), ScriptedModel()
    costs = {id(apart): apart_ns, id(together): together_ns}
    monkeypatch.setattr(
        "headrace.engine.selection.time_execution", lambda model, inputs: costs[id(model)]
    )
    instances, model = choose_threads(apart, lambda _: together, cores=cores, padded=False)

    assert instances.threads == threads
    assert instances.threads * instances.concurrency == cores
    assert not model.unloaded
    assert model is (together if threads > 1 else apart)


def test_profiles_outlive_the_process(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"x")
    store = ProfileStore(tmp_path / "profiles")
    key = store.key(file, "cpu")
    stored = StoredProfile("onnxruntime", InstanceConfig(2, 3), Profile(max_rows=7))

    assert store.load(key) is None
    store.save(key, stored)
    assert ProfileStore(tmp_path / "profiles").load(key) == stored
    assert store.key(file, "another cpu") != key
    file.write_bytes(b"xy")
    assert store.key(file, "cpu") != key


def test_a_damaged_profile_is_no_profile(tmp_path):
    store = ProfileStore(tmp_path)
    (tmp_path / "k.json").write_text('{"runtime": "onnxruntime", "profile": {"max_rows": "many"')

    assert store.load("k") is None


@pytest.mark.parametrize(
    ("instances", "profile"),
    [
        (InstanceConfig(threads=100_000), Profile()),
        (InstanceConfig(concurrency=0), Profile()),
        (InstanceConfig(), Profile(max_rows=0)),
        (InstanceConfig(), Profile(row_ns=-1)),
        (InstanceConfig(), Profile(costs={1: LearntCost(((2.0, 1.0), (1.0, 2.0)))})),
        (InstanceConfig(), Profile(costs={1: LearntCost(spread=-1.0)})),
    ],
)
def test_a_profile_that_cannot_have_been_measured_is_no_profile(tmp_path, instances, profile):
    store = ProfileStore(tmp_path)
    store.save("k", StoredProfile("onnxruntime", instances, profile))
    store.save("l", StoredProfile("onnxruntime", InstanceConfig(), Profile(), (((1 << 40,),),)))

    assert store.load("k") is None
    assert store.load("l") is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = ProfileStore(tmp_path / "file" / "profiles")
    store.save("k", StoredProfile("onnxruntime", InstanceConfig(), Profile()))

    assert store.load("k") is None
