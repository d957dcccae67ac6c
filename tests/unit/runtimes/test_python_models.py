"""A model file, from its source to answers: what both kinds of isolation have in common."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from headrace.errors import InferenceFailed, ModelLoadError
from headrace.runtimes.base import ShapePolicy
from headrace.types import TensorSpec
from tests.unit.runtimes.python_models import HEADER_LINES, Gate, load, loaded, write_model

ROWS = np.float32([[1, 2, 3, 4], [5, 6, 7, 8]])

both = pytest.mark.parametrize("isolation", ["thread", "process"])


@both
def test_a_class_is_loaded_once_and_answers_batches(tmp_path, isolation):
    source = """
    class Doubler:
        def load(self):
            self.factor, self.calls = 2, 0

        def predict(self, x: Table, names: list[str] | None = None) -> tuple[Table, list[str]]:
            self.calls += 1
            return self.factor * x, [f"{self.calls}:{name}" for name in names or "ab"]
    """
    with loaded(tmp_path, source, isolation=isolation) as model:
        assert model.inputs == (
            TensorSpec("x", "FP32", (-1, 4)),
            TensorSpec("names", "BYTES", (-1,), optional=True),
        )
        assert [spec.name for spec in model.outputs] == ["output_0", "output_1"]
        assert (model.concurrency, model.shape_policy) == (1, ShapePolicy())
        names = np.array([b"x", "ÿ".encode()], object)
        for inputs, expected in (
            ([ROWS, None], [b"1:a", b"1:b"]),
            ([ROWS, names], [b"2:x", "2:ÿ".encode()]),
        ):
            doubled, labels = model.execute(inputs)
            assert np.array_equal(doubled, 2 * ROWS)
            assert doubled.dtype == np.float32
            assert labels.tolist() == expected


@both
def test_what_predict_raises_is_passed_on_with_its_line_and_the_model_goes_on(
    tmp_path, isolation, caplog
):
    source = """
    def predict(x: Table) -> Table:
        if x[0, 0] < 0:
            raise ValueError("negative")
        return x
    """
    with loaded(tmp_path, source, isolation=isolation) as model:
        with pytest.raises(InferenceFailed, match=r"raised ValueError: negative \(model.py") as one:
            model.execute([-ROWS])
        assert one.value.details == {"exception": "ValueError", "line": HEADER_LINES + 3}
        assert "Traceback" in caplog.text
        assert 'raise ValueError("negative")' in caplog.text
        assert np.array_equal(model.execute([ROWS])[0], ROWS)


@both
def test_wrong_rows_name_what_came_and_what_was_expected(tmp_path, isolation):
    source = "def predict(x: Table) -> Table: return x[:1]"
    with (
        loaded(tmp_path, source, isolation=isolation) as model,
        pytest.raises(InferenceFailed, match="returned 1 rows as 'output', expected 2"),
    ):
        model.execute([ROWS])


@both
def test_what_was_handed_out_is_the_caller_s_own(tmp_path, isolation):
    """Even where the model answers from one buffer, or with the very array it was given."""
    source = """
    class Buffered:
        def __init__(self):
            self.buffer = np.zeros((2, 4), "f4")
            self.kept = []

        def predict(self, x: Table) -> tuple[Table, Table, Table]:
            self.buffer[:] = x
            self.kept.append(x)
            return self.buffer, x, self.kept[0]
    """
    batch = np.empty_like(ROWS)  # the engine's, which uses it again
    answers = []
    with loaded(tmp_path, source, isolation=isolation) as model:
        for factor in (1, 2, 3, 4, 5, 6):
            batch[:] = ROWS * factor
            answers.append(model.execute([batch]))
    for factor, (buffered, echoed, first) in enumerate(answers, start=1):
        assert np.array_equal(buffered, ROWS * factor)
        assert np.array_equal(echoed, ROWS * factor)
        assert np.array_equal(first, ROWS)
        buffered[:] = 0  # and may be written


@both
def test_a_model_may_work_in_place_whatever_the_caller_allows(tmp_path, isolation):
    source = """
    def predict(x: Table) -> Table:
        x *= 2
        return x
    """
    batch = ROWS.copy()
    batch.flags.writeable = False
    with loaded(tmp_path, source, isolation=isolation) as model:
        assert np.array_equal(model.execute([batch])[0], 2 * ROWS)
    assert np.array_equal(batch, ROWS)


@both
def test_coroutines_share_one_event_loop_that_runs_between_batches(tmp_path, isolation):
    source = """
    class Async:
        async def load(self):
            self.ticks = asyncio.Queue()
            self.task = asyncio.create_task(self.tick())

        async def tick(self):
            for number in range(1000):
                await self.ticks.put(number)

        async def predict(self, x: Table) -> Column:
            if x[0, 0] < 0:
                raise LookupError("async")
            return [await self.ticks.get() for _ in x]
    """
    with loaded(tmp_path, source, isolation=isolation) as model:
        assert model.execute([ROWS])[0].tolist() == [0, 1]
        with pytest.raises(InferenceFailed, match="LookupError: async"):
            model.execute([-ROWS])
        assert model.execute([ROWS])[0].tolist() == [2, 3]


@both
def test_a_coroutine_that_is_cancelled_fails_its_batch_only(tmp_path, isolation):
    source = """
    async def predict(x: Table) -> Table:
        if x[0, 0] < 0:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        return x
    """
    with loaded(tmp_path, source, isolation=isolation) as model:
        with pytest.raises(InferenceFailed, match="CancelledError"):
            model.execute([-ROWS])
        assert np.array_equal(model.execute([ROWS])[0], ROWS)


@both
def test_each_slot_has_an_object_of_its_own(tmp_path, isolation):
    source = """
    class Alone:
        inside = False

        def predict(self, x: Table) -> Table:
            assert not self.inside
            self.inside = True
            meet()
            self.inside = False
            return x
    """
    gate = Gate(tmp_path)
    results = []
    with loaded(tmp_path, source, isolation=isolation, concurrency=2) as model:
        threads = [
            threading.Thread(target=lambda: results.append(model.execute([ROWS]))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        gate.wait(2)  # both are inside at one time
        gate.open(2)
        for thread in threads:
            thread.join()
    gate.close()
    assert len(results) == 2


@both
def test_files_beside_the_model_are_found(tmp_path, isolation):
    (tmp_path / "helper.py").write_text("from . import other\ntriple = lambda x: other.three * x\n")
    (tmp_path / "other.py").write_text("three = 3\n")
    (tmp_path / "numbers.txt").write_text("10")
    source = """
    from pathlib import Path
    from .helper import triple
    ten = int((Path(__file__).parent / "numbers.txt").read_text())
    def predict(x: Table) -> Table:
        return triple(x) + ten
    """
    with loaded(tmp_path, source, isolation=isolation) as model:
        assert np.array_equal(model.execute([ROWS])[0], 3 * ROWS + 10)


LOAD_RAISES = """
class A:
    def load(self): raise OSError('no disk')
    def predict(self, x: Table) -> Table: ...
"""
ASYNC_LOAD_EXITS = """
class A:
    async def load(self): sys.exit(3)
    def predict(self, x: Table) -> Table: ...
"""
NEEDS_ARGUMENTS = """
class A:
    def __init__(self, size): ...
    def predict(self, x: Table) -> Table: return x
"""
FIRST = HEADER_LINES + 1


NOT_A_MODEL = [
    ("def predict(:", rf"model\.py, line {FIRST}: SyntaxError"),
    ("import no_such_one", rf"ModuleNotFoundError: .*no_such_one.*, line {FIRST}\)"),
    ("sys.exit(4)", r"importing .* raised SystemExit: 4"),
    ("x = 1", "neither a class with a predict method nor a function predict"),
    (LOAD_RAISES, rf"A\.load\(\) raised OSError: no disk \(model\.py, line {FIRST + 1}\)"),
    (ASYNC_LOAD_EXITS, r"A\.load\(\) raised SystemExit: 3"),
    (NEEDS_ARGUMENTS, r"A\(\) raised TypeError: .*'size'"),
    ("def predict(x) -> Table: ...", "'x' has no type hint"),
]


@pytest.mark.parametrize(
    ("isolation", "source", "says"),
    [
        *(("thread", *case) for case in NOT_A_MODEL),
        *(("process", *case) for case in NOT_A_MODEL[:1] + NOT_A_MODEL[4:6]),
    ],
)
def test_a_file_that_cannot_be_a_model_is_refused_with_the_reason(
    tmp_path, isolation, source, says
):
    path = write_model(tmp_path, source)
    modules = set(sys.modules)
    with pytest.raises(ModelLoadError, match=says) as caught:
        load(path, isolation=isolation)
    assert caught.value.hint
    assert set(sys.modules) == modules


A_CLASS = """
class A:
    def predict(self, x: Table) -> Table: return x
"""
A_CLASS_WITH_A_BASE = """
class Base:
    def predict(self, x: Table) -> Table: return x
class B(Base): ...
"""
AN_ABSTRACT_CLASS_AND_A_FUNCTION = """
import abc
class Base(abc.ABC):
    @abc.abstractmethod
    def predict(self, x: Table) -> Table: ...
def predict(x: Table) -> Table: return x
"""
A_CLASS_WITHOUT_AND_A_FUNCTION = """
class A:
    predict = 1
def predict(x: Table) -> Table: return x
"""
THREE = """
class A:
    def predict(self): ...
class B:
    def predict(self): ...
def predict(): ...
"""


@pytest.mark.parametrize(
    ("source", "entry"),
    [
        (A_CLASS, ""),
        (A_CLASS_WITH_A_BASE, ""),
        (A_CLASS_WITHOUT_AND_A_FUNCTION, ""),
        (AN_ABSTRACT_CLASS_AND_A_FUNCTION, ""),
        ("def answer(x: Table) -> Table: return x", "answer"),
        (NEEDS_ARGUMENTS + "ready = A(1)", "ready"),
    ],
)
def test_the_object_that_answers_is_found_or_named(tmp_path, source, entry):
    with loaded(tmp_path, source, isolation="thread", entry=entry) as model:
        assert np.array_equal(model.execute([ROWS])[0], ROWS)


@pytest.mark.parametrize(
    ("source", "entry", "says", "hint"),
    [
        (THREE, "", "more than one candidate for the model: A, B, predict", 'entry = "A"'),
        (A_CLASS, "Model", "has no 'Model'", "candidates: A"),
        ("A = 3", "A", "is a int without a predict", "a class, a function"),
    ],
)
def test_an_unclear_or_wrong_entry_lists_the_candidates(tmp_path, source, entry, says, hint):
    with pytest.raises(ModelLoadError, match=says) as caught:
        load(write_model(tmp_path, source), isolation="thread", entry=entry)
    assert hint in caught.value.hint


def test_no_such_file(tmp_path):
    with pytest.raises(ModelLoadError, match="is not a file"):
        load(tmp_path / "model.py", isolation="thread")


def test_the_configured_signature_wins(tmp_path):
    source = "def predict(x): return {'twice': 2 * x}"
    spec = {"datatype": "INT64", "shape": [-1]}
    options = {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "twice", **spec}]}
    with loaded(tmp_path, source, isolation="thread", **options) as model:
        assert model.execute([np.int64([4, 5])])[0].tolist() == [8, 10]


def test_an_object_that_the_module_made_is_loaded_once_for_all_slots(tmp_path):
    source = """
    class Model:
        loads = 0
        def load(self):
            self.loads += 1
        def predict(self, x: Table) -> Column:
            return [self.loads] * len(x)
    model = Model()
    """
    with loaded(tmp_path, source, isolation="thread", concurrency=3, entry="model") as model:
        assert model.execute([ROWS])[0].tolist() == [1, 1]


# Inside the server


def test_sys_exit_in_a_thread_fails_the_batch_and_not_the_server(tmp_path):
    source = "def predict(x: Table) -> Table: sys.exit(7)"
    with (
        loaded(tmp_path, source, isolation="thread") as model,
        pytest.raises(InferenceFailed, match=r"called sys\.exit\(7\)"),
    ):
        model.execute([ROWS])


def test_a_thread_may_have_a_running_event_loop_of_its_own(tmp_path):
    """As the engine's has, when it runs a cheap model inline."""
    import asyncio

    source = """
    async def predict(x: Table) -> Table:
        await asyncio.sleep(0)
        return x
    """
    with loaded(tmp_path, source, isolation="thread") as model:

        async def inline():
            return model.execute([ROWS])

        assert np.array_equal(asyncio.run(inline())[0], ROWS)


def test_a_background_task_that_exits_takes_nothing_else_with_it(tmp_path):
    source = """
    async def leave():
        sys.exit(1)

    async def predict(x: Table) -> Table:
        await asyncio.wait([asyncio.create_task(leave())])
        return x
    """
    with loaded(tmp_path, source, isolation="thread") as model:
        for _ in range(3):
            assert np.array_equal(model.execute([ROWS])[0], ROWS)


def test_a_model_in_a_thread_leaves_the_interpreter_as_it_was(tmp_path):
    modules, path = set(sys.modules), list(sys.path)
    (tmp_path / "helper.py").write_text("x = 1\n")
    source = "from . import helper\nasync def predict(x: Table) -> Table: return x"
    for _ in range(50):
        with loaded(tmp_path, source, isolation="thread") as model:
            model.execute([ROWS])
            assert sys.path == path
    assert set(sys.modules) == modules
    assert [thread.name for thread in threading.enumerate() if "coroutines" in thread.name] == []


def test_two_models_from_one_file_do_not_share_their_module(tmp_path):
    source = """
    calls = 0
    def predict(x: Table) -> Column:
        global calls
        calls += 1
        return [calls] * len(x)
    """
    with (
        loaded(tmp_path, source, isolation="thread") as one,
        loaded(tmp_path, source, isolation="thread") as two,
    ):
        assert [m.execute([ROWS])[0].tolist() for m in (one, one, two)] == [[1, 1], [2, 2], [1, 1]]


def test_a_file_that_was_edited_a_moment_ago_is_read_anew(tmp_path):
    for number in range(5):
        source = f"def predict(x: Table) -> Column: return [{number}] * len(x)"
        with loaded(tmp_path, source, isolation="thread") as model:
            assert model.execute([ROWS])[0].tolist() == [number] * 2


def test_an_absolute_import_of_a_sibling_says_how_to_write_it(tmp_path):
    (tmp_path / "neighbour.py").write_text("")
    with pytest.raises(ModelLoadError) as caught:
        load(write_model(tmp_path, "import neighbour"), isolation="thread")
    assert 'write "from . import neighbour"' in caught.value.hint
