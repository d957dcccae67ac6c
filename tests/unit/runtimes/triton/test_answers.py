"""What a model written for Triton's Python backend meets: its life, its requests, its answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from headrace.config import ModelConfig, TensorConfig
from headrace.errors import (
    InferenceFailed,
    InstanceDied,
    InvalidRequest,
    ModelLoadError,
    ModelNotFound,
    PayloadTooLarge,
    RequestCancelled,
)
from headrace.runtimes.base import Artifact, InstanceConfig
from headrace.runtimes.python import PythonRuntime
from headrace.types import DTYPE_OF
from tests.unit.runtimes.triton.triton_models import (
    DATATYPES,
    OBEDIENT,
    OBEDIENT_CONFIG,
    Answers,
    Obedient,
    loaded,
    request,
    write_model,
)

INT = {
    "inputs": (TensorConfig(name="IN", datatype="INT32", shape=(-1,)),),
    "outputs": (TensorConfig(name="OUT", datatype="INT32", shape=(-1,)),),
    "triton_config": {"max_batch_size": 0},
}


@pytest.fixture(scope="module")
def obedient(tmp_path_factory):
    with loaded(tmp_path_factory.mktemp("obedient"), OBEDIENT, **OBEDIENT_CONFIG) as model:
        yield Obedient(model)


def a_tensor(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        array = np.empty(3, dtype=object)
        array[:] = [b"", b"\x00\xff", "grün".encode()]
        return array
    return np.arange(5).astype(DTYPE_OF[datatype])


class TestAnswers:
    @pytest.mark.parametrize("datatype", DATATYPES)
    def test_every_datatype_goes_in_and_comes_out(self, obedient, datatype):
        sent = a_tensor(datatype)
        answer = obedient.sole(
            f"""
            tensor = pb_utils.get_input_tensor_by_name(requests[0], "IN_{datatype}")
            data = tensor.as_numpy()
            data[:1] = data[:1]  # it may be changed
            result = [pb_utils.InferenceResponse([pb_utils.Tensor("OUT_{datatype}", data)])]
            """,
            **{f"IN_{datatype}": sent},
        )
        got = answer[obedient.index[f"OUT_{datatype}"]]
        assert got.dtype == sent.dtype
        assert got.tolist() == sent.tolist()
        assert sum(array is not None for array in answer) == 1

    def test_large_tensors_and_none_at_all(self, obedient):
        code = """
        data = pb_utils.get_input_tensor_by_name(requests[0], "IN_FP32").as_numpy()
        result = [pb_utils.InferenceResponse([pb_utils.Tensor("OUT_FP32", data * 2)])]
        """
        for size in (3_000_000, 12_289, 0):
            sent = np.arange(size, dtype=np.float32)
            answer = obedient.sole(code, IN_FP32=sent)
            np.testing.assert_array_equal(answer[obedient.index["OUT_FP32"]], sent * 2)

    def test_every_request_of_a_batch_has_its_own(self, obedient):
        answers = Answers()
        code = """
        result = [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT_INT32", pb_utils.get_input_tensor_by_name(
                    request, "IN_INT32").as_numpy() * 10)]
            )
            for request in requests
        ]
        """
        requests = []
        for number in range(700):  # more pieces than one system call takes
            requests += obedient.requests(code, IN_INT32=np.array([number], np.int32))
        obedient.model.execute_requests(requests, answers)
        index = obedient.index["OUT_INT32"]
        got = [answers.by_key[each.key][0][index].tolist() for each in requests]
        assert got == [[10 * number] for number in range(700)]

    def test_errors_belong_to_their_request_and_have_its_code(self, obedient):
        answers = obedient.run(
            """
            def wrong(code):
                error = pb_utils.TritonError(f"number {code}", code)
                return pb_utils.InferenceResponse(error=error)
            result = [say("fine")] + [wrong(code) for code in (
                pb_utils.TritonError.INTERNAL, pb_utils.TritonError.NOT_FOUND,
                pb_utils.TritonError.INVALID_ARG, pb_utils.TritonError.CANCELLED)]
            """,
            5,
        )
        assert obedient.texts(answers[0][0]) == ["fine"]
        errors = [each[0] for each in answers[1:]]
        assert [type(error) for error in errors] == [
            InferenceFailed,
            ModelNotFound,
            InvalidRequest,
            RequestCancelled,
        ]
        assert [error.message for error in errors] == [f"number {code}" for code in (1, 2, 3, 7)]

    def test_parameters_of_a_response_come_along(self, obedient):
        answer = obedient.sole(
            """
            result = [pb_utils.InferenceResponse([], parameters={"a": 1, "b": "x", "c": True})]
            """
        )
        assert answer.parameters == {"a": 1, "b": "x", "c": True}

    def test_what_is_not_declared_is_left_out(self, obedient):
        answer = obedient.sole(
            """
            result = [pb_utils.InferenceResponse([pb_utils.Tensor("WHAT", np.zeros(3))])]
            """
        )
        assert answer == [None] * len(obedient.index)

    def test_widths_are_brought_to_what_is_declared(self, obedient):
        code = """
        data = eval({!r})
        result = [pb_utils.InferenceResponse([pb_utils.Tensor({!r}, data)])]
        """
        for data, name, expected in (
            ("np.array([1, 2])", "OUT_INT32", [1, 2]),
            ("np.array([200], np.int32)", "OUT_UINT8", [200]),
            ("np.array([1.5])", "OUT_FP32", [1.5]),
            ("np.array([1.5], np.float32)", "OUT_FP64", [1.5]),
            ("np.array([], np.int64)", "OUT_INT8", []),
        ):
            got = obedient.sole(code.format(data, name))[obedient.index[name]]
            assert got.dtype == DTYPE_OF[name.removeprefix("OUT_")]
            assert got.tolist() == expected
        for data, name in (
            ("np.array([300], np.int32)", "OUT_UINT8"),
            ("np.array([-1], np.int32)", "OUT_UINT64"),
            ("np.array([1.0])", "OUT_INT32"),
            ("np.array([1])", "OUT_FP32"),
            ("np.array([True])", "OUT_INT32"),
            ("np.array([b'x'], object)", "OUT_FP32"),
            ("np.array([1.0], np.float32)", "OUT_BF16"),
        ):
            error = obedient.sole(code.format(data, name))
            assert isinstance(error, InferenceFailed), (data, name)
            assert error.code == "wrong_output_datatype"

    def test_texts_are_sent_as_utf8_and_other_objects_as_their_text(self, obedient):
        code = """
        data = np.array(["grün", b"raw", 7, None, bytearray(b"ba")], dtype=object)
        result = [pb_utils.InferenceResponse([pb_utils.Tensor("OUT_BYTES", data)])]
        """
        assert obedient.said(code) == ["grün", "raw", "7", "None", "ba"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("raise ValueError('no ' + 'way')", r"ValueError: no way"),
            ("raise pb_utils.TritonModelException('mine')", r"TritonModelException: mine"),
            ("result = []", r"InferenceRequest\(s\) size is:2, and InferenceResponse\(s\) size is"),
            ("result = [say('a')] * 3", r"InferenceResponse\(s\) size is:3"),
            ("result = 7", r"Expected a list in the execute return, found type '<class 'int'>'"),
            ("result = [say('a'), 7]", r"Expected an 'InferenceResponse' object .* found type"),
            (
                (
                    "data = np.array(['\\ud800'], dtype=object)\nresult = [say('a'), "
                    "pb_utils.InferenceResponse([pb_utils.Tensor('OUT_BYTES', data)])]"
                ),
                "surrogates not allowed",
            ),
            (
                (
                    "requests[0].set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)\n"
                    "result = [say('a'), say('b')]"
                ),
                "Expected a None object",
            ),
        ],
    )
    def test_the_whole_batch_fails_in_triton_s_words(self, obedient, code, message):
        before = "Failed to process the request(s) for model 'm_0', message: "
        answers = Answers()
        with pytest.raises(InferenceFailed, match=re.escape(before)) as raised:
            obedient.model.execute_requests(obedient.requests(code, 2), answers)
        assert re.search(message, raised.value.message)
        assert obedient.said("result = [say('still there')]") == ["still there"]

    def test_a_request_without_an_answer_has_none(self, obedient):
        # The engine says so; here nothing is emitted, and nobody waits for ever.
        assert obedient.run("result = None", 2) == [[], []]
        first, second = obedient.run("result = [say('a'), None]", 2)
        assert obedient.texts(first[0]) == ["a"]
        assert second == []

    def test_an_error_that_is_long_is_cut(self, obedient):
        code = "result = [pb_utils.InferenceResponse(error=pb_utils.TritonError('x' * 10**6))]"
        assert 10_000 < len(obedient.sole(code).message) < 20_000

    def test_an_empty_error_is_one(self, obedient):
        code = "result = [pb_utils.InferenceResponse(error=pb_utils.TritonError(''))]"
        assert isinstance(obedient.sole(code), InferenceFailed)

    def test_an_answer_larger_than_may_be_shared_fails_alone(self, tmp_path):
        options = {"max_shared_bytes": 1_000_000}
        with loaded(tmp_path, OBEDIENT, options=options, **OBEDIENT_CONFIG) as model:
            one = Obedient(model)
            big = """
            tensor = pb_utils.Tensor("OUT_UINT8", np.zeros(1_000_001, np.uint8))
            result = [pb_utils.InferenceResponse([tensor])]
            """
            with pytest.raises(InferenceFailed, match="max_shared_bytes is 1000000"):
                one.run(big)
            with pytest.raises(PayloadTooLarge, match="max_shared_bytes is 1000000"):
                one.run("result = [say('a')]", IN_UINT8=np.zeros(1_000_001, np.uint8))
            assert one.said("result = [say('a')]") == ["a"]


class TestWhatARequestTells:
    def test_everything_that_came_with_it(self, obedient):
        fields = {
            "id": "id-1",
            "outputs": ("OUT_BYTES", "OUT_INT8"),
            "parameters": {"a": "b", "n": 5, "t": True},
            "sequence_id": 2**64 - 1,
            "sequence_start": True,
            "priority": 3,
            "timeout_ns": 5_000_000,
        }
        code = """
        r = requests[0]
        result = [say(
            r.request_id(), r.requested_output_names(), json.dumps(json.loads(r.parameters())),
            r.correlation_id(), r.flags(), r.priority(), r.timeout(), r.model_name(),
            r.model_version(), [t.name() for t in r.inputs()], r.is_cancelled(),
            r.trace().get_context())]
        """
        assert obedient.said(code, fields, IN_INT8=np.zeros(1, np.int8)) == [
            "id-1",
            "['OUT_BYTES', 'OUT_INT8']",
            '{"a": "b", "n": 5, "t": true}',
            str(2**64 - 1),
            "1",
            "3",
            "5000",
            "m",
            "1",
            "['CODE', 'IN_INT8']",
            "False",
            "None",
        ]

    def test_nothing_came_with_it(self, obedient):
        code = """
        r = requests[0]
        result = [say(r.request_id(), r.parameters(), r.correlation_id(), r.flags(),
                      len(r.requested_output_names()))]
        """
        assert obedient.said(code) == ["", "{}", "0", "0", str(len(DATATYPES))]

    def test_a_text_names_a_sequence_too(self, obedient):
        fields = {"sequence_id": "abc", "sequence_end": True}
        code = "result = [say(requests[0].correlation_id(), requests[0].flags())]"
        assert obedient.said(code, fields) == ["abc", "2"]

    def test_parameters_that_fill_more_than_a_packet_arrive(self, obedient):
        long = "x" * 500_000
        code = "result = [say(len(json.loads(requests[0].parameters())['long']))]"
        fields = {"parameters": {"long": long}}
        assert obedient.said(code, fields) == ["500000"]
        assert obedient.said(code, fields, IN_UINT8=np.zeros(100_000, np.uint8)) == ["500000"]

    def test_parameters_that_cannot_be_sent_fail_this_batch_only(self, obedient):
        with pytest.raises(OverflowError):
            obedient.run("result = [say('a')]", fields={"parameters": {"n": 2**70}})
        assert obedient.said("result = [say('a')]") == ["a"]


class TestSendersOfAModelWithOneAnswer:
    def test_it_may_be_sent_at_once_or_from_another_thread(self, obedient):
        for call in ("send", "threading.Timer(0.05, send).start"):
            code = f"""
            sender = requests[0].get_response_sender()
            assert sender is requests[0].get_response_sender()
            def send():
                sender.send(say("sent"), pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            {call}()
            """
            assert obedient.said(code) == ["sent"]

    def test_there_is_one_and_not_two(self, obedient):
        code = """
        sender = requests[0].get_response_sender()
        sender.send(say("first"))
        try:
            sender.send(say("second"))
        except pb_utils.TritonModelException as error:
            self.kept["error"] = str(error)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        """
        first, end = obedient.run(code)[0]
        assert obedient.texts(first) == ["first"]
        assert end is None
        assert (
            "cannot send more than one response"
            in obedient.said("result = [say(self.kept['error'])]")[0]
        )

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ("send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)", "before sending a resp"),
            ("send()", "must be provided"),
            ("send(say('a'), flags=8)", "Unsupported flag"),
            ("send('text', flags=1)", "expected an InferenceResponse, got str"),
        ],
    )
    def test_nonsense_is_refused(self, obedient, call, message):
        with pytest.raises(InferenceFailed, match=message):
            obedient.run(f"requests[0].get_response_sender().{call}")

    def test_an_answer_that_was_sent_is_not_returned_too(self, obedient):
        answers = Answers()
        code = """
        requests[0].get_response_sender().send(say("sent"), 1)
        result = [say("returned")]
        """
        with pytest.raises(InferenceFailed, match="more than one response"):
            obedient.model.execute_requests(obedient.requests(code), answers)


class TestLife:
    def test_arguments_are_those_of_triton(self, tmp_path, obedient):
        said = obedient.said("result = [say(json.dumps(self.args), pb_utils.get_model_dir())]")
        arguments = json.loads(said[0])
        config = json.loads(arguments.pop("model_config"))
        assert config["max_batch_size"] == 0
        repository = arguments.pop("model_repository")
        assert arguments == {
            "model_instance_kind": "CPU",
            "model_instance_name": "m_0",
            "model_instance_device_id": "0",
            "model_version": "1",
            "model_name": "m",
        }
        assert said[1] == f"{repository}/1"

    def test_instances_are_named_after_their_groups(self, tmp_path):
        config = {
            **INT,
            "triton_config": {
                "max_batch_size": 0,
                "instance_group": [{"name": "fast", "count": 1}, {"count": 1}],
            },
        }
        source = """
        class TritonPythonModel:
            def initialize(self, args):
                print("I am", args["model_instance_name"], flush=True)
                open(f"{pb_utils.get_model_dir()}/{args['model_instance_name']}", "w").close()
            def execute(self, requests): ...
        """
        with loaded(tmp_path, source, concurrency=2, **config):
            assert {path.name for path in (tmp_path / "1").iterdir()} == {
                "model.py",
                "fast",
                "m_1",
            }

    def test_finalize_is_called_and_may_take_its_time(self, tmp_path):
        source = """
        class TritonPythonModel:
            def execute(self, requests): ...
            def finalize(self):
                time.sleep(1.5)  # longer than a child has to leave by itself
                open(f"{pb_utils.get_model_dir()}/finalized", "w").close()
        """
        with loaded(tmp_path, source, **INT):
            assert not (tmp_path / "1" / "finalized").exists()
        assert (tmp_path / "1" / "finalized").exists()

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("class TritonPythonModel: pass", "has no method execute"),
            (
                "class TritonPythonModel:\n    def initialize(self, args): raise OSError('disk')",
                r"TritonPythonModel.initialize raised OSError: disk",
            ),
            ("class TritonPythonModel:\n    def __init__(self): sys.exit(3)", "SystemExit"),
            ("import nothing_of_the_kind\nclass TritonPythonModel: ...", "nothing_of_the_kind"),
            (
                (
                    "class TritonPythonModel:\n"
                    "    def initialize(self, args):\n"
                    "        pb_utils.InferenceRequest(model_name='x').exec()"
                ),
                "before the model is loaded",
            ),
        ],
    )
    def test_what_cannot_be_loaded_says_why(self, tmp_path, source, message):
        path = write_model(tmp_path, source)
        artifact = Artifact("m", "1", path, path.parent, "python", config=ModelConfig(**INT))
        with pytest.raises(ModelLoadError, match=message):
            PythonRuntime().load(artifact, InstanceConfig())

    def test_a_crash_costs_its_batch_and_no_other(self, tmp_path):
        with loaded(tmp_path, OBEDIENT, **OBEDIENT_CONFIG) as model:
            one = Obedient(model)
            with pytest.raises(InstanceDied, match="SIGKILL"):
                one.run("os.kill(os.getpid(), signal.SIGKILL)")
            with pytest.raises(InstanceDied, match="exited with status 3"):
                one.run("sys.exit(3)")
            assert one.said("result = [say('back')]") == ["back"]

    def test_nothing_is_left_open(self, tmp_path):
        def descriptors():
            return len(list(Path("/proc/self/fd").iterdir()))

        with loaded(tmp_path, OBEDIENT, **OBEDIENT_CONFIG) as model:
            Obedient(model).said("result = [say('warm')]")
        before = descriptors()
        with loaded(tmp_path, OBEDIENT, **OBEDIENT_CONFIG) as model:
            one = Obedient(model)
            for _ in range(3):
                one.said("result = [say('x')]", IN_UINT8=np.zeros(100_000, np.uint8))
        assert descriptors() == before

    def test_execute_may_be_a_coroutine(self, tmp_path):
        source = """
        class TritonPythonModel:
            async def execute(self, requests):
                await asyncio.sleep(0)
                return [self.answer(request) for request in requests]

            def answer(self, request):
                data = request.inputs()[0].as_numpy()
                return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", data)])
        """
        with loaded(tmp_path, source, **INT) as model:
            answers = Answers()
            sent = [np.array([i], np.int32) for i in range(3)]
            model.execute_requests(
                [request(model, i, IN=array) for i, array in enumerate(sent)], answers
            )
            assert [answers.by_key[i][0][0].tolist() for i in range(3)] == [[0], [1], [2]]


class TestAutoComplete:
    SOURCE = """
    class TritonPythonModel:
        @staticmethod
        def auto_complete_config(config):
            names = [each["name"] for each in config.as_dict()["input"]]
            if "IN" not in names:
                config.add_input(
                    {"name": "IN", "data_type": "TYPE_FP32", "dims": [4], "optional": True})
            config.add_output({"name": "OUT", "data_type": "TYPE_STRING", "dims": [-1]})
            config.set_max_batch_size(ROWS)
            config.set_dynamic_batching()
            config.set_model_transaction_policy({"decoupled": False})
            return config

        def initialize(self, args):
            assert json.loads(args["model_config"])["output"][0]["name"] == "OUT"

        def execute(self, requests): ...
    """

    @pytest.mark.parametrize("rows", [0, 8])
    def test_the_model_says_what_the_configuration_did_not(self, tmp_path, rows):
        with loaded(tmp_path, self.SOURCE.replace("ROWS", str(rows))) as model:
            (taken,), (given,) = model.inputs, model.outputs
            free = (-1,) if rows else ()
            assert (taken.name, taken.datatype, taken.shape) == ("IN", "FP32", (*free, 4))
            assert taken.optional
            assert (given.name, given.datatype, given.shape) == ("OUT", "BYTES", (*free, -1))
            assert model.max_batch_size == rows

    def test_what_is_configured_completely_is_left_alone(self, tmp_path):
        source = """
        class TritonPythonModel:
            @staticmethod
            def auto_complete_config(config): raise RuntimeError
            def execute(self, requests): ...
        """
        with loaded(tmp_path, source, **INT) as model:
            assert model.inputs[0].name == "IN"

    @pytest.mark.parametrize("returned", ["None", "config.as_dict()"])
    def test_it_returns_the_configuration(self, tmp_path, returned):
        source = f"""
        class TritonPythonModel:
            @staticmethod
            def auto_complete_config(config): return {returned}
            def execute(self, requests): ...
        """
        path = write_model(tmp_path, source)
        with pytest.raises(ModelLoadError, match="auto_complete_config returned"):
            PythonRuntime().load(Artifact("m", "1", path, path.parent, "python"), InstanceConfig())
