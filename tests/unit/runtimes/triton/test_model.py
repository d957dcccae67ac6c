"""Models of one response for each request, in real child processes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import HeadraceError, InferenceFailed, InstanceDied, ModelLoadError
from headrace.runtimes.base import ModelRequest
from headrace.types import DTYPE_OF
from tests.unit.runtimes.triton.models import (
    IN,
    OUT,
    SCRIPT,
    Answers,
    loaded,
    request,
    run,
    tell,
    tensor_config,
    texts,
)

COUNT = tensor_config("COUNT", "INT32")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    with loaded(tmp_path_factory.mktemp("script"), SCRIPT, outputs=(OUT, COUNT)) as model:
        yield model


ECHO = """
class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([
                pb_utils.Tensor("OUT_" + tensor.name(), tensor.as_numpy())
                for tensor in request.inputs()
            ])
            for request in requests
        ]
"""


def example(datatype: str, size: int) -> np.ndarray:
    if datatype == "BYTES":
        return texts(*([b"", "é", b"\0\xff"] * size)[:size])
    return (np.arange(size) % (2 if datatype == "BOOL" else 100)).astype(DTYPE_OF[datatype])


def test_every_datatype_in_every_size(tmp_path):
    names = list(DTYPE_OF)
    inputs = [tensor_config(name, name, optional=True) for name in names]
    outputs = [tensor_config(f"OUT_{name}", name) for name in names]
    with loaded(tmp_path, ECHO, inputs=inputs, outputs=outputs) as model:
        for size in (0, 1, 7, 20_000):
            data = [example(name, size) for name in names]
            answers = run(model, requests=[ModelRequest(5, data)])
            ((got, final),) = answers.of[5]
            assert final
            for sent, array in zip(data, got, strict=True):
                assert (array.dtype, array.tolist()) == (sent.dtype, sent.tolist())
        left_out = [None] * len(names)
        left_out[3] = example(names[3], 2)
        ((got, _),) = run(model, requests=[ModelRequest(1, left_out)]).of[1]
        assert [array is None for array in got] == [array is None for array in left_out]
        assert model.execute([example(name, 3) for name in names])[0].tolist() == [0, 1, 0]


def test_sums_and_differences(tmp_path):
    names = ("INPUT0", "INPUT1"), ("OUTPUT0", "OUTPUT1")
    source = """
    class TritonPythonModel:
        def execute(self, requests):
            pairs = [(given(each, "INPUT0"), given(each, "INPUT1")) for each in requests]
            return [
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor("OUTPUT1", a - b), pb_utils.Tensor("OUTPUT0", a + b)]
                )
                for a, b in pairs
            ]
    """
    inputs, outputs = ([tensor_config(name, "FP32") for name in group] for group in names)
    with loaded(tmp_path, source, inputs=inputs, outputs=outputs) as model:
        requests = [
            ModelRequest(key, [np.full(key, key, np.float32), np.ones(key, np.float32)])
            for key in (1, 4, 2)
        ]
        answers = run(model, requests=requests)
        for key in (1, 4, 2):
            (((total, difference), final),) = answers.of[key]
            assert final
            assert total.tolist() == [key + 1] * key
            assert difference.tolist() == [key - 1] * key


def test_a_request_says_what_came_with_it(script):
    fields = {
        "id": "seven",
        "sequence_id": "köln",
        "sequence_start": True,
        "sequence_end": True,
        "priority": 3,
        "timeout_ns": 5_000_000,
        "outputs": ("COUNT",),
        "parameters": {"a": 1, "b": "two", "c": True, "d": 0.5},
    }
    told = tell(
        script,
        "(request.request_id(), request.correlation_id(), request.flags(), request.timeout(),"
        "request.requested_output_names(), json.loads(request.parameters()))",
        **fields,
    )
    expected = ("seven", "köln", 3, 5000, ["COUNT"], fields["parameters"])
    assert told == str(expected)
    assert tell(script, "request.requested_output_names()") == "['OUT', 'COUNT']"
    assert tell(script, "(request.request_id(), request.correlation_id())") == "('', 0)"


def test_an_answer_does_not_change_when_the_model_changes_its_array(script):
    code = """
    def execute(requests):
        kept = self.kept.setdefault("array", np.zeros({size}, np.int32))
        kept += 1
        return [pb_utils.InferenceResponse([pb_utils.Tensor("COUNT", kept)])]
    """
    for size in (3, 100_000):
        tell(script, "self.kept.clear()")
        first, second = (run(script, code.format(size=size)).of[1][0][0][1] for _ in range(2))
        assert (first == 1).all()
        assert (second == 2).all()
        first += 5  # the caller's own
        assert (second == 2).all()


def test_a_model_may_change_what_it_was_given(script):
    mine = request(
        1, "def execute(requests):\n    given(requests[0])[0] = b'x'\n    return [said(1)]\n"
    )
    before = mine.arrays[0].tolist()
    assert run(script, requests=[mine]).texts(1) == ["1"]
    assert mine.arrays[0].tolist() == before


class TestErrors:
    def test_one_response_of_three(self, script):
        code = """
        def execute(requests):
            error = pb_utils.TritonError("not this one")
            return [said(1), pb_utils.InferenceResponse(error=error), said(3)]
        """
        answers = run(script, requests=[request(key, code) for key in (1, 2, 3)])
        (first,), (second,), (third,) = (answers.texts(key) for key in (1, 2, 3))
        assert (first, third) == ("1", "3")
        assert isinstance(second, HeadraceError)
        assert second.message == "not this one"

    def test_what_execute_raises(self, script):
        with pytest.raises(InferenceFailed) as raised:
            run(script, "def execute(requests):\n    raise KeyError('gone')\n")
        assert raised.value.message.startswith("Failed to process the request(s) for model 'm")
        assert "KeyError: 'gone'" in raised.value.message
        assert tell(script, "'next'") == "next"

    @pytest.mark.parametrize(
        ("returned", "text"),
        [
            ("[]", "InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0"),
            ("[said(1), said(2)]", "size is:1, and InferenceResponse(s) size is:2"),
            ("5", "Expected a list in the execute return, found type '<class 'int'>'."),
            ("['x']", "Expected an 'InferenceResponse' object in the execute function return list"),
        ],
    )
    def test_what_execute_may_not_return(self, script, returned, text):
        with pytest.raises(InferenceFailed) as raised:
            run(script, f"def execute(requests):\n    return {returned}\n")
        assert text in raised.value.message
        assert tell(script, "'next'") == "next"

    @pytest.mark.parametrize("returned", ["None", "[None]"])
    def test_no_response_at_all(self, script, returned):
        """It is over all the same; the engine tells who asked."""
        assert run(script, f"def execute(requests):\n    return {returned}\n").texts(1) == []
        assert tell(script, "'next'") == "next"

    def test_an_output_of_another_kind(self, script):
        code = """
        def execute(requests):
            texts = pb_utils.Tensor("COUNT", np.array([b"x"], object))
            return [pb_utils.InferenceResponse([texts])]
        """
        (error,) = run(script, code).texts(1)
        assert error.code == "wrong_output_datatype"
        assert "'COUNT' as BYTES, expected INT32" in error.message

    def test_outputs_that_are_left_out_and_unknown_ones(self, script):
        code = """
        def execute(requests):
            return [pb_utils.InferenceResponse([pb_utils.Tensor("NOBODY", np.zeros(2)), {}])]
        """
        count = 'pb_utils.Tensor("COUNT", np.array([7], np.int32))'
        ((got, _),) = run(script, code.format(count)).of[1]
        assert got[0] is None
        assert got[1].tolist() == [7]


def test_requests_beyond_what_a_packet_takes(script):
    """Neither many in one batch nor long parameters end the child."""
    pid = tell(script, "os.getpid()")
    code = "def execute(requests):\n    return [said(r.request_id()) for r in requests]\n"
    many = [request(key, code, id=str(key)) for key in range(1, 1501)]
    answers = run(script, requests=many)
    assert [answers.texts(key) for key in range(1, 1501)] == [[str(k)] for k in range(1, 1501)]
    long = {"text": "x" * 300_000}
    assert tell(script, "len(request.parameters())", parameters=long) == str(300_000 + 12)
    assert len(tell(script, "'y' * 400_000")) == 400_000
    assert tell(script, "os.getpid()") == pid


ASYNC = """
async def execute(requests):
    await asyncio.sleep(0)
    values = await asyncio.gather(*(asyncio.to_thread(r.request_id) for r in requests))
    return [said(value) for value in values]
"""


def test_execute_may_be_a_coroutine(script):
    answers = run(script, requests=[request(key, ASYNC, id=f"n{key}") for key in (1, 2)])
    assert [answers.texts(key) for key in (1, 2)] == [["n1"], ["n2"]]
    with pytest.raises(InferenceFailed, match="ZeroDivisionError"):
        run(script, "async def execute(requests):\n    1 / 0\n")


class TestResponseSender:
    """A model of one response may send it by the request's sender."""

    def test_before_execute_returns(self, script):
        code = """
        def execute(requests):
            for request in requests:
                request.get_response_sender().send(said(request.request_id()), flags=FINAL)
        """
        answers = run(script, requests=[request(key, code, id=str(key)) for key in (1, 2)])
        assert [answers.texts(key) for key in (1, 2)] == [["1"], ["2"]]

    def test_after_execute_returned(self, script):
        """``execute_requests`` is over when all have their answer."""
        code = """
        def execute(requests):
            sender = requests[0].get_response_sender()
            threading.Thread(target=lambda: sender.send(said("late"), flags=FINAL)).start()
        """
        for _ in range(20):
            assert run(script, code).texts(1) == ["late"]

    @pytest.mark.parametrize(
        ("sent", "text"),
        [
            ("s.send(said(1)); s.send(said(2))", "cannot send more than one response"),
            ("s.send(flags=FINAL)", "cannot send complete final before sending a response"),
            ("s.send()", "must be provided when the response flags is set to zero"),
            ("s.send(said(1), FINAL); s.send(said(1))", "Unable to send response."),
        ],
    )
    def test_what_it_refuses(self, script, sent, text):
        code = f"""
        def execute(requests):
            s = requests[0].get_response_sender()
            try:
                {sent}
            except pb_utils.TritonModelException as error:
                self.kept["error"] = str(error)
            for last in (lambda: s.send(said(0), FINAL), lambda: s.send(flags=FINAL)):
                try:
                    last()
                except pb_utils.TritonModelException:
                    pass  # it is over already
        """
        run(script, code)
        assert text in tell(script, "self.kept['error']")


class TestDeath:
    def test_the_batch_fails_and_the_next_one_runs(self, tmp_path):
        with loaded(tmp_path, SCRIPT) as model:
            pid = tell(model, "os.getpid()")
            with pytest.raises(InstanceDied, match="exited with status 7"):
                run(model, "def execute(requests):\n    os._exit(7)\n")
            assert tell(model, "os.getpid()") != pid
            with pytest.raises(InstanceDied):
                run(model, "def execute(requests):\n    os.abort()\n")
            with pytest.raises(InstanceDied):
                run(model, "def execute(requests):\n    raise SystemExit(1)\n")
            assert tell(model, "'again'") == "again"

    def test_one_that_died_idle(self, tmp_path):
        with loaded(tmp_path, SCRIPT) as model:
            child = model._pool.take()
            model._pool.put(child)
            tell(model, "1")
            child.kill()
            assert child.died.wait(30)
            assert int(tell(model, "os.getpid()")) != child.pid

    def test_a_late_answer_dies_with_the_child(self, tmp_path):
        """``execute`` has returned; the response was still to come."""
        code = """
        def execute(requests):
            self.kept["sender"] = requests[0].get_response_sender()
            threading.Thread(target=lambda: os._exit(3)).start()
        """
        with loaded(tmp_path, SCRIPT) as model:
            try:
                (error,) = run(model, code).texts(1)
            except InstanceDied as raised:
                error = raised
            assert isinstance(error, InstanceDied)


class TestStart:
    def test_initialize_raises(self, tmp_path):
        source = SCRIPT.replace("self.args = args", "raise ValueError('no licence')")
        with (
            pytest.raises(ModelLoadError, match="initialize raised ValueError: no licence"),
            loaded(tmp_path, source),
        ):
            pass

    def test_there_is_no_execute(self, tmp_path):
        with (
            pytest.raises(ModelLoadError, match="execute"),
            loaded(tmp_path, "class TritonPythonModel:\n    pass\n"),
        ):
            pass

    def test_what_initialize_is_told(self, script, tmp_path_factory):
        assert tell(script, "sorted(self.args)") == str(
            sorted(
                f"model_{name}"
                for name in (
                    "config",
                    "instance_kind",
                    "instance_name",
                    "instance_device_id",
                    "repository",
                    "version",
                    "name",
                )
            )
        )
        assert (
            tell(script, "[self.args['model_' + n] for n in ('name', 'version')]") == "['m', '1']"
        )
        folder = tell(script, "self.args['model_repository']")
        assert tell(script, "pb_utils.get_model_dir()") == str(Path(folder, "1"))
        config = "json.loads(self.args['model_config'])"
        assert tell(script, f"{config}['input'][0]['name']") == "IN"
        assert tell(script, f"{config}['output'][1]['data_type']") == "TYPE_INT32"

    def test_the_model_completes_its_configuration(self, tmp_path):
        source = """
        class TritonPythonModel:
            @staticmethod
            def auto_complete_config(config):
                config.set_max_batch_size(16)
                config.add_input({"name": "IN", "data_type": "TYPE_STRING", "dims": [-1]})
                config.add_output({"name": "OUT", "data_type": "TYPE_STRING", "dims": [2, -1]})
                config.set_model_transaction_policy({"decoupled": True})
                config.set_dynamic_batching()
                return config

            def execute(self, requests):
                pass
        """
        with loaded(tmp_path, source, inputs=(), outputs=()) as model:
            assert [(s.name, s.datatype, s.shape) for s in model.inputs] == [
                ("IN", "BYTES", (-1, -1))
            ]
            assert [(s.name, s.datatype, s.shape) for s in model.outputs] == [
                ("OUT", "BYTES", (-1, 2, -1))
            ]
            assert model.max_batch_size == 16
            assert model.decoupled

    def test_completing_it_fails(self, tmp_path):
        source = SCRIPT + (
            "\n    @staticmethod\n    def auto_complete_config(config):\n"
            "        config.add_input({'name': 'X', 'dims': [1]})\n"
        )
        said = r"auto_complete_config raised ValueError: .*data_type"
        with (
            pytest.raises(ModelLoadError, match=said),
            loaded(tmp_path, source, inputs=(), outputs=()),
        ):
            pass

    def test_finalize_runs_when_it_is_unloaded(self, tmp_path):
        source = SCRIPT + (
            "\n    def finalize(self):\n"
            "        open(self.args['model_repository'] + '/finalized', 'a').write('x')\n"
        )
        with loaded(tmp_path, source, instances=2) as model:
            tell(model, "1")
            assert not (tmp_path / "finalized").exists()
        assert (tmp_path / "finalized").read_text() == "xx"


class TestInstances:
    def test_two_run_beside_one_another_and_have_names(self, tmp_path):
        """Each waits for the other, which is somewhere else."""
        for name in ("a", "b"):
            os.mkfifo(tmp_path / name)
        code = """
        def execute(requests):
            folder = self.args["model_repository"]
            with open(f"{{folder}}/a", {!r}), open(f"{{folder}}/b", {!r}):
                return [said(self.args["model_instance_name"])]
        """
        with loaded(tmp_path, SCRIPT, instances=2) as model:
            answers = [Answers(), Answers()]
            threads = [
                threading.Thread(
                    target=model.execute_requests,
                    args=([request(1, code.format(*modes))], each.emit),
                )
                for each, modes in zip(answers, ["wr", "rw"], strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert sorted(each.texts(1)[0] for each in answers) == ["m_0_0", "m_0_1"]

    def test_pinned_ones_are_always_the_same(self, tmp_path):
        with loaded(tmp_path, SCRIPT, instances=2) as model:
            first, second = model.instance(0), model.instance(1)
            names = [tell(one, "self.args['model_instance_name']") for one in (first, second)]
            assert names == ["m_0_0", "m_0_1"]
            for one, name in zip((first, second, first, second), names * 2, strict=True):
                assert tell(one, "self.args['model_instance_name']") == name
            with pytest.raises(InstanceDied):
                run(first, "def execute(requests):\n    os._exit(1)\n")
            assert first.lost
            assert not second.lost
            with pytest.raises(InstanceDied, match="was replaced"):
                tell(first, "1")
            first.renew()
            assert tell(first, "self.args['model_instance_name']") == "m_0_0"


def test_one_model_is_one_child_whatever_it_declares(tmp_path):
    with loaded(tmp_path, SCRIPT, inputs=(IN,), outputs=(OUT,)) as model:
        assert (model.takes_requests, model.may_run_inline, model.concurrency) == (True, False, 1)
        assert not model.decoupled
