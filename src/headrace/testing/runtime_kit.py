"""What every runtime must do, as tests: inherit, say how to make a model, run pytest.

::

    # tests/test_my_runtime.py
    from headrace.testing import ModelCase, RuntimeKit

    class TestMyRuntime(RuntimeKit):
        def make_runtime(self):
            return MyRuntime()

        def cases(self, folder):
            path = folder / "double.mine"
            path.write_bytes(...)                       # a model whose answers you know
            return [
                ModelCase(
                    artifact=Artifact("double", "1", path, folder, "mine"),
                    make_inputs=lambda rows, rng: [rng.random((rows, 4), np.float32)],
                    expected=lambda inputs: [inputs[0] * 2],
                    inputs=(TensorSpec("x", "FP32", (-1, 4)),),
                    outputs=(TensorSpec("y", "FP32", (-1, 4)),),
                )
            ]

        def broken_artifacts(self, folder):
            return [...]                                # each must raise ModelLoadError

That is all that must be written; :meth:`RuntimeKit.identity_case`,
:meth:`~RuntimeKit.optional_case` and :meth:`~RuntimeKit.bad_inputs` say more where there is
more to say. Needs pytest to run, not to be imported. Every check opens with what it is for.

For messages with values in them: ``pytest.register_assert_rewrite("headrace.testing")`` in
``conftest.py``, before the import.
"""

from __future__ import annotations

import gc
import os
import unittest
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from headrace.errors import InferenceFailed, InvalidRequest, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig, LoadedModel, Runtime
from headrace.types import DTYPE_OF, TensorSpec

Inputs = list[np.ndarray | None]

ROWS = (1, 2, 3, 8, 33)
"""Batch sizes tried: alone, together, odd, a power of two, one more than one."""


class ModelCase(msgspec.Struct, frozen=True, kw_only=True):
    """A model whose answers are known.

    ``make_inputs(rows, rng)`` makes one array for each input, first axis = ``rows``;
    ``expected(inputs)`` what the model answers to them; ``inputs`` and ``outputs`` are its
    signature. Floating-point answers may differ by ``atol + rtol x |expected|``; the default
    is what FP32 kernels differ by.
    """

    artifact: Artifact
    make_inputs: Callable[[int, np.random.Generator], Inputs]
    expected: Callable[[Sequence[np.ndarray | None]], Sequence[np.ndarray]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rtol: float = 1e-4
    atol: float = 1e-5


class RuntimeKit:
    """Inherit from it; see the module. Methods named ``test_*`` are the checks."""

    concurrency = 4
    """Executions at one time that are asked for; a model may offer fewer."""

    cycles = 8
    """Loads and unloads in the test that counts what is left behind."""

    # What the author of a runtime says.

    def make_runtime(self) -> Runtime:
        """A new runtime."""
        raise NotImplementedError

    def cases(self, folder: Path) -> Iterable[ModelCase]:
        """At least one model, written to ``folder``. Better two: one with a free length."""
        raise NotImplementedError

    def broken_artifacts(self, folder: Path) -> Iterable[Artifact]:
        """What must not load: no file, garbage, a file cut short, an unknown option."""
        raise NotImplementedError

    def identity_case(self, folder: Path, datatype: str) -> Artifact | None:  # noqa: ARG002 - a hook
        """A model ``x`` [-1,4] -> ``y`` [-1,4] of this datatype that changes nothing.

        None where the runtime has no way to say such a model. A datatype that it can say but
        not compute exactly must be refused by ``load``.
        """
        return None

    def optional_case(self, folder: Path) -> ModelCase | None:  # noqa: ARG002 - a hook
        """A model with an optional input; ``expected`` is also asked with None for it."""
        return None

    def bad_inputs(self, case: ModelCase) -> Inputs:
        """Inputs that the model must fail on. By default the first has one axis too many."""
        inputs = case.make_inputs(2, np.random.default_rng(0))
        assert inputs[0] is not None
        inputs[0] = inputs[0][..., None].repeat(2, -1)
        return inputs

    # What is checked.

    def test_names_itself_and_its_formats(self, tmp_path: Path) -> None:
        """So that ``runtime = "name"`` and ``auto`` can find it."""
        runtime = self.make_runtime()
        assert runtime.name
        assert isinstance(runtime.formats, tuple), "formats is a tuple of names"
        for case in self.cases(tmp_path):
            assert case.artifact.format in runtime.formats

    def test_signature_is_the_models_own(self, tmp_path: Path) -> None:
        """Names, datatypes, shapes and order reach the metadata that clients read."""
        for case, model in self._each(tmp_path):
            assert tuple(model.inputs) == case.inputs
            assert tuple(model.outputs) == case.outputs
            assert 1 <= model.concurrency <= self.concurrency
            assert model.shape_policy.row_multiple >= 1
            assert model.shape_policy.length_multiple >= 1

    def test_answers_are_right_at_every_batch_size(self, tmp_path: Path) -> None:
        """Rows go in and come out in one order, whatever their number."""
        rng = np.random.default_rng(1)
        for case, model in self._each(tmp_path):
            for rows in (*ROWS, *reversed(ROWS)):
                inputs = case.make_inputs(rows, rng)
                _assert_answer(case, model.execute(inputs), case.expected(inputs))

    def test_answers_belong_to_the_caller(self, tmp_path: Path) -> None:
        """They are written to the socket while the next batch runs, and may be changed."""
        rng = np.random.default_rng(2)
        for case, model in self._each(tmp_path):
            first = case.make_inputs(3, rng)
            expected = case.expected(first)
            answer = model.execute(first)
            for array in first:
                if array is not None:
                    array.fill(array.flat[-1])  # the same memory, as a batch buffer is reused
            for _ in range(self.concurrency + 1):
                second = case.make_inputs(3, rng)
                other = model.execute(second)
                _assert_answer(case, other, case.expected(second))
                for array in other:
                    array.fill(array.flat[0])
            _assert_answer(case, answer, expected)

    def test_inputs_are_only_read(self, tmp_path: Path) -> None:
        """Arrays made of a request's bytes cannot be written to, and are not."""
        rng = np.random.default_rng(3)
        for case, model in self._each(tmp_path):
            inputs = case.make_inputs(3, rng)
            before = [None if array is None else array.copy() for array in inputs]
            for array in inputs:
                if array is not None:
                    array.flags.writeable = False
            _assert_answer(case, model.execute(inputs), case.expected(before))
            for array, copy in zip(inputs, before, strict=True):
                if array is not None and copy is not None:
                    assert np.array_equal(array, copy), "it was changed"

    def test_threads_do_not_meet(self, tmp_path: Path) -> None:
        """``concurrency`` threads may be inside ``execute``; each gets its own answer."""
        for case, model in self._each(tmp_path):
            rng = np.random.default_rng(4)
            batches = [case.make_inputs(1 + i % 5, rng) for i in range(16 * self.concurrency)]
            with ThreadPoolExecutor(model.concurrency) as threads:
                answers = list(threads.map(model.execute, batches))
            for inputs, answer in zip(batches, answers, strict=True):
                _assert_answer(case, answer, case.expected(inputs))

    def test_works_after_it_failed(self, tmp_path: Path) -> None:
        """A bad request fails alone: InferenceFailed, and the next execution is right."""
        rng = np.random.default_rng(5)
        for case, model in self._each(tmp_path):
            for _ in range(2 * self.concurrency):
                with _raises(InferenceFailed):
                    model.execute(self.bad_inputs(case))
                inputs = case.make_inputs(2, rng)
                _assert_answer(case, model.execute(inputs), case.expected(inputs))

    def test_what_is_broken_does_not_load(self, tmp_path: Path) -> None:
        """ModelLoadError that names the model or the file: it is all the operator sees."""
        artifacts = list(self.broken_artifacts(tmp_path))
        assert artifacts, "say at least one"
        for artifact in artifacts:
            what = f"{artifact.path.name} of {artifact.name}"
            with _raises(ModelLoadError, what) as errors:
                self.make_runtime().load(artifact, InstanceConfig())
            message = str(errors[0])
            known = (artifact.name, artifact.path.name)
            assert any(name in message for name in known), f"names neither: {message}"
            assert "\n" not in message, "the command line shows one line"

    def test_two_copies_are_apart(self, tmp_path: Path) -> None:
        """A new version is ready before the old one leaves, and outlives it."""
        rng = np.random.default_rng(6)
        case = self._first(tmp_path)
        old, new = self._load(case.artifact), self._load(case.artifact)
        try:
            inputs = case.make_inputs(2, rng)
            _assert_answer(case, old.execute(inputs), case.expected(inputs))
            old.unload()
            _assert_answer(case, new.execute(inputs), case.expected(inputs))
        finally:
            new.unload()

    def test_unload_gives_everything_back(self, tmp_path: Path) -> None:
        """Threads, open files and memory do not grow with the number of models seen."""
        if not Path("/proc/self/statm").exists():
            raise unittest.SkipTest("needs /proc")
        case = self._first(tmp_path)
        for _ in range(2):
            self._load_run_unload(case)
        before = _Held.now()
        for _ in range(self.cycles):
            self._load_run_unload(case)
        after = _Held.now()
        assert after.threads < before.threads + self.cycles, f"{before} became {after}"
        assert after.files < before.files + self.cycles, f"{before} became {after}"
        grown = (after.resident_bytes - before.resident_bytes) / self.cycles
        assert grown < 2 * 2**20, f"{grown:,.0f} bytes stay behind with every model"

    def test_optional_inputs_may_be_left_out(self, tmp_path: Path) -> None:
        """None stands where the request had nothing."""
        case = self.optional_case(tmp_path)
        if case is None:
            raise unittest.SkipTest("no optional inputs here")
        with self._loaded(case.artifact) as model:
            assert tuple(model.inputs) == case.inputs
            assert any(spec.optional for spec in model.inputs)
            for turn in range(4):
                inputs = case.make_inputs(3, np.random.default_rng(turn))
                if turn % 2:
                    inputs = [
                        None if spec.optional else array
                        for spec, array in zip(model.inputs, inputs, strict=True)
                    ]
                _assert_answer(case, model.execute(inputs), case.expected(inputs))

    def test_every_datatype_is_exact_or_refused(self, tmp_path: Path) -> None:
        """Extremes of every V2 datatype come back bit for bit, or the model does not load."""
        artifacts = {datatype: self.identity_case(tmp_path, datatype) for datatype in DTYPE_OF}
        if not any(artifacts.values()):
            raise unittest.SkipTest("no identity models here")
        for datatype, artifact in artifacts.items():
            if artifact is None:
                continue
            try:
                model = self._load(artifact)
            except ModelLoadError:
                continue  # refused, which is better than inexact
            try:
                self._check_identity(model, datatype)
            finally:
                model.unload()

    def _check_identity(self, model: LoadedModel, datatype: str) -> None:
        assert [spec.datatype for spec in (*model.inputs, *model.outputs)] == [datatype] * 2
        sent = extremes(datatype)
        expected = sent.copy()
        try:
            (got,) = model.execute([sent])
        except (InferenceFailed, InvalidRequest):
            if datatype != "INT64":
                raise
            # Computed as INT32: may be refused by value, never narrowed in silence.
            sent = expected = np.clip(expected, -(2**31), 2**31 - 1)
            (got,) = model.execute([sent])
        assert got.dtype == expected.dtype, f"{datatype} came back as {got.dtype}"
        assert got.shape == expected.shape
        same = got.tolist() == expected.tolist() or got.tobytes() == expected.tobytes()
        assert same, f"{datatype}: {expected.tolist()} became {got.tolist()}"

    def _load(self, artifact: Artifact) -> LoadedModel:
        return self.make_runtime().load(artifact, InstanceConfig(concurrency=self.concurrency))

    @contextmanager
    def _loaded(self, artifact: Artifact) -> Iterator[LoadedModel]:
        model = self._load(artifact)
        try:
            yield model
        finally:
            model.unload()

    def _each(self, folder: Path) -> Iterator[tuple[ModelCase, LoadedModel]]:
        cases = list(self.cases(folder))
        assert cases, "say at least one case"
        for case in cases:
            with self._loaded(case.artifact) as model:
                yield case, model

    def _first(self, folder: Path) -> ModelCase:
        return next(iter(self.cases(folder)))

    def _load_run_unload(self, case: ModelCase) -> None:
        with self._loaded(case.artifact) as model:
            model.execute(case.make_inputs(2, np.random.default_rng(0)))


def extremes(datatype: str) -> np.ndarray:
    """``[2, 4]`` values of a V2 datatype that a careless conversion changes."""
    dtype = DTYPE_OF[datatype]
    if datatype == "BYTES":
        values = [b"", b"a", "\u00e9\u4e16\U0001f30a".encode(), b"nul\0inside", b" ", b"x" * 300]
        return _objects([*values, b"\n", b"0"]).reshape(2, 4)
    if datatype == "BF16":
        # 1, -1, the largest, the smallest, infinity, -0, 1/3 and 0 in bfloat16.
        bits = [0x3F80, 0xBF80, 0x7F7F, 0x0080, 0x7F80, 0x8000, 0x3EAB, 0]
        return np.array(bits, np.uint16).reshape(2, 4)
    if dtype.kind == "b":
        return np.array([[True, False, True, True], [False, False, True, False]])
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        floats = [0.0, -0.0, 1 / 3, limits.max, limits.min, limits.tiny, np.inf, -1.0]
        return np.array(floats, dtype).reshape(2, 4)
    whole = np.iinfo(dtype)
    numbers = [0, 1, whole.max, whole.min, whole.max - 1, whole.min + 1, whole.max // 2, 7]
    return np.array(numbers, dtype).reshape(2, 4)


class _Held(msgspec.Struct, frozen=True):
    threads: int
    files: int
    resident_bytes: int

    @classmethod
    def now(cls) -> _Held:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            threads=len(list(Path("/proc/self/task").iterdir())),
            files=len(list(Path("/proc/self/fd").iterdir())),
            resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        )


def _assert_answer(
    case: ModelCase, got: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> None:
    assert len(got) == len(case.outputs), f"{len(got)} outputs instead of {len(case.outputs)}"
    for spec, array, want in zip(case.outputs, got, expected, strict=True):
        assert array.dtype == DTYPE_OF[spec.datatype], f"'{spec.name}' is {array.dtype}"
        assert array.shape == want.shape, f"'{spec.name}': {array.shape} instead of {want.shape}"
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, want, rtol=case.rtol, atol=case.atol)
        else:
            assert array.tolist() == want.tolist(), f"'{spec.name}' has other values"


@contextmanager
def _raises(kind: type[Exception], what: str = "") -> Iterator[list[Exception]]:
    """As ``pytest.raises``, so that importing the kit does not need pytest."""
    caught: list[Exception] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"{what or 'this'} should raise {kind.__name__}, and did not"


def _objects(values: Sequence[object]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
