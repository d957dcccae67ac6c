"""Models that answer when they like: any number of times, and perhaps much later."""

from __future__ import annotations

import threading
from textwrap import dedent, indent

import pytest

from headrace.errors import HeadraceError, InferenceFailed, InstanceDied
from tests.unit.runtimes.triton.models import SCRIPT, Answers, loaded, request, run, texts

COUNT = """
def execute(requests):
    for request in requests:
        sender = request.get_response_sender()
        for number in range(int(request.request_id())):
            sender.send(said(number))
        sender.send(flags=FINAL)
"""

KEEP = """
def execute(requests):
    for request in requests:
        self.kept[request.request_id()] = request, request.get_response_sender()
"""


@pytest.fixture
def model(tmp_path):
    with loaded(tmp_path, SCRIPT, decoupled=True) as model:
        assert model.decoupled
        yield model


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with loaded(tmp_path_factory.mktemp("shared"), SCRIPT, decoupled=True) as model:
        yield model


def ended(answers: Answers, key: int = 1) -> list:
    """All answers to ``key``, once its last one is there."""
    while not (answers.of.get(key) and answers.of[key][-1][1]):
        answers.next()
    assert [final for _, final in answers.of[key]] == [False] * (len(answers.of[key]) - 1) + [True]
    return answers.texts(key)


def keep(model, *ids: str) -> Answers:
    """Open requests: ``id`` is the number of its key."""
    answers = Answers()
    model.execute_requests([request(int(each), KEEP, id=each) for each in ids], answers.emit)
    assert answers.of == {}
    return answers


def do(model, code: str) -> list:
    """Runs code that sees ``self``; what it puts into ``out`` is what comes back."""
    whole = (
        f"def execute(requests):\n    out = []\n{indent(dedent(code), ' ' * 4)}\n"
        "    sender = requests[0].get_response_sender()\n"
        "    for each in out:\n        sender.send(said(each))\n"
        "    sender.send(flags=FINAL)\n"
    )
    answers = Answers()
    model.execute_requests([request(999, whole)], answers.emit)
    return ended(answers, 999)[:-1]


def test_any_number_of_answers(shared):
    answers = run(shared, requests=[request(n + 1, COUNT, id=str(n)) for n in (0, 1, 3, 200)])
    for n in (0, 1, 3, 200):
        assert ended(answers, n + 1) == [str(number) for number in range(n)] + [None]


def test_the_last_answer_may_say_that_it_is(shared):
    code = """
    def execute(requests):
        sender = requests[0].get_response_sender()
        sender.send(said(1))
        sender.send(said(2), flags=FINAL)
    """
    assert ended(run(shared, code)) == ["1", "2"]


def test_late_answers_from_a_thread(shared):
    answers = keep(shared, "1", "2")
    code = """
    def work():
        for name in ("2", "1"):
            sender = self.kept.pop(name)[1]
            sender.send(said("late " + name))
            sender.send(flags=FINAL)
    threading.Thread(target=work).start()
    """
    do(shared, code)
    assert ended(answers, 1) == ["late 1", None]
    assert ended(answers, 2) == ["late 2", None]


def test_nothing_is_sent_after_the_last_one(shared):
    code = """
    def execute(requests):
        sender = requests[0].get_response_sender()
        sender.send(said(1), flags=FINAL)
        for last in (lambda: sender.send(said(2)), lambda: sender.send(flags=FINAL)):
            try:
                last()
            except pb_utils.TritonModelException as error:
                self.kept.setdefault("errors", []).append(str(error))
        assert requests[0].get_response_sender() is sender
    """
    assert ended(run(shared, code)) == ["1"]
    refused = "Unable to send response. Response sender has been closed."
    assert do(shared, "out += self.kept.pop('errors')") == [refused] * 2


def test_neither_a_response_nor_the_end(shared):
    code = """
    def execute(requests):
        sender = requests[0].get_response_sender()
        try:
            sender.send()
        except pb_utils.TritonModelException as error:
            sender.send(said(error), flags=FINAL)
    """
    (text,) = ended(run(shared, code))
    assert text.startswith("Inference Response object must be provided when the response flags")


def test_an_error_is_one_of_the_answers(shared):
    code = """
    def execute(requests):
        sender = requests[0].get_response_sender()
        sender.send(said(1))
        sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("no more")), flags=FINAL)
    """
    first, error = ended(run(shared, code))
    assert first == "1"
    assert isinstance(error, HeadraceError)
    assert error.message == "no more"


def test_execute_raises_with_requests_open(shared):
    with pytest.raises(InferenceFailed, match="ValueError: bad"):
        run(shared, "def execute(requests):\n    raise ValueError('bad')\n")
    assert do(shared, "out += ['next']") == ["next"]


def test_execute_may_not_return_answers(shared):
    with pytest.raises(
        InferenceFailed, match="decoupled mode and the execute function must return"
    ):
        run(shared, "def execute(requests):\n    return [said(1)]\n")


def test_a_coroutine_goes_on_while_others_run(shared):
    code = """
    async def execute(requests):
        sender = requests[0].get_response_sender()
        go = asyncio.Event()
        self.kept["go"] = asyncio.get_running_loop(), go
        sender.send(said("begun"))
        await go.wait()
        sender.send(said("over"), flags=FINAL)
    """
    answers = run(shared, code)
    assert answers.next()[2] is False
    do(shared, "loop, go = self.kept.pop('go'); loop.call_soon_threadsafe(go.set)")
    assert ended(answers) == ["begun", "over"]
    (error,) = ended(run(shared, "async def execute(requests):\n    1 / 0\n"))
    assert "ZeroDivisionError" in error.message


class TestCancel:
    def test_the_model_sees_it(self, shared):
        answers = keep(shared, "1", "2")
        seen = "out += [[self.kept[n][i].is_cancelled() for n in '12' for i in (0, 1)]]"
        assert do(shared, seen) == ["[False, False, False, False]"]
        shared.cancel(1)
        for _ in range(1000):  # it is told beside what is executed, not before
            if do(shared, seen) == ["[True, True, False, False]"]:
                break
        else:
            pytest.fail("the model was not told")
        do(shared, "[s.send(flags=FINAL) for r, s in (self.kept.pop(n) for n in '12')]")
        assert ended(answers, 2) == [None]
        assert 1 not in answers.of

    def test_while_execute_runs(self, shared):
        code = """
        def execute(requests):
            sender = requests[0].get_response_sender()
            sender.send(said("begun"))
            while not requests[0].is_cancelled():
                threading.Event().wait(0.001)
            self.kept["seen"] = True
        """
        answers = Answers()
        thread = threading.Thread(
            target=shared.execute_requests, args=([request(1, code)], answers.emit)
        )
        thread.start()
        answers.next()
        shared.cancel(1)
        thread.join(30)
        assert do(shared, "out += [self.kept.pop('seen')]") == ["True"]

    def test_before_the_child_looked_at_it(self, shared):
        """It is in the line behind another one."""
        hold = """
        def execute(requests):
            requests[0].get_response_sender().send(said("here"))
            self.kept["hold"] = requests
            while not requests[0].is_cancelled():
                threading.Event().wait(0.001)
        """
        answers = Answers()
        batch = [request(1, hold), request(2, KEEP)]
        thread = threading.Thread(target=shared.execute_requests, args=(batch, answers.emit))
        thread.start()
        answers.next()
        shared.cancel(2)
        shared.cancel(1)
        thread.join(30)
        assert do(shared, "out += [r.is_cancelled() for r in self.kept.pop('hold')]") == [
            "True",
            "True",
        ]

    def test_of_what_is_not_there(self, shared):
        shared.cancel(123456)
        assert do(shared, "out += ['next']") == ["next"]


class TestDeath:
    def test_all_that_is_open_fails(self, model):
        answers = keep(model, "1", "2", "3")
        do(model, "self.kept['2'][1].send(flags=FINAL)")
        assert ended(answers, 2) == [None]
        pid = int(do(model, "out += [os.getpid()]")[0])
        with pytest.raises(InstanceDied):
            run(model, requests=[request(9, "def execute(requests):\n    os._exit(1)\n")])
        for key in (1, 3):
            (error,) = ended(answers, key)
            assert isinstance(error, InstanceDied)
        assert int(do(model, "out += [os.getpid()]")[0]) != pid

    def test_when_nothing_executes(self, model):
        answers = keep(model, "1", "2")
        child = model._pool.take()
        model._pool.put(child)
        child.kill()
        assert [type(ended(answers, key)[0]) for key in (1, 2)] == [InstanceDied] * 2
        assert do(model, "out += ['next']") == ["next"]

    def test_after_some_of_its_answers(self, model):
        answers = Answers()
        code = """
        def execute(requests):
            requests[0].get_response_sender().send(said("first"))
            os._exit(1)
        """
        with pytest.raises(InstanceDied):
            model.execute_requests([request(1, code)], answers.emit)
        assert answers.texts(1) in (["first"], [])


def test_unload_with_open_requests_ends_them(tmp_path):
    with loaded(tmp_path, SCRIPT, decoupled=True) as model:
        answers = keep(model, "1", "2")
    for key in (1, 2):
        (error,) = ended(answers, key)
        assert isinstance(error, HeadraceError)


def test_one_request_of_its_own_waits_for_its_answer(shared):
    """Of a warm-up."""
    code = """
    def execute(requests):
        sender = requests[0].get_response_sender()
        threading.Thread(target=lambda: sender.send(said("warm"), flags=FINAL)).start()
    """
    for _ in range(20):
        (output,) = shared.execute([texts(dedent(code))])
        assert output.tolist() == [b"warm"]
