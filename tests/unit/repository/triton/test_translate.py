"""What a configuration means here: table by table."""

from __future__ import annotations

import re
from typing import Any

import pytest

from headrace.config import (
    BatchInputConfig,
    ControlConfig,
    EnsembleStep,
    ModelConfig,
    StateConfig,
    TensorConfig,
    WarmupConfig,
)
from headrace.errors import ConfigError
from headrace.protos import model_config
from headrace.repository.model_toml import overlay
from headrace.repository.triton.schema import read
from headrace.repository.triton.text_format import parse
from headrace.repository.triton.translate import Translation, translate

IO = (
    'input { name: "x" data_type: TYPE_FP32 dims: 4 } '
    'output { name: "y" data_type: TYPE_STRING dims: [ -1, 2 ] }\n'
)


def made(text: str, *, stateless: bool = True) -> Translation:
    said = read(parse(text, where="c"), model_config().DESCRIPTOR, where="c")
    return translate(said, stateless=stateless)


def config_of(text: str, *, stateless: bool = True) -> ModelConfig:
    return overlay(ModelConfig(), made(text, stateless=stateless).table, where="c")


class TestSignature:
    def test_shapes_count_rows_where_there_are_rows(self) -> None:
        config = config_of("max_batch_size: 8 " + IO)
        assert config.inputs == (TensorConfig(name="x", datatype="FP32", shape=(-1, 4)),)
        assert config.outputs == (TensorConfig(name="y", datatype="BYTES", shape=(-1, -1, 2)),)
        assert config.batching.max_batch_size == 8

    def test_without_rows_shapes_are_as_they_are_and_nothing_is_batched(self) -> None:
        config = config_of(IO)
        assert config.inputs[0].shape == (4,)
        assert config.outputs[0].shape == (-1, 2)
        assert config.batching.max_batch_size == 1

    def test_reshape_flags_and_labels(self) -> None:
        config = config_of(
            'max_batch_size: 2 input { name: "x" data_type: TYPE_BF16 dims: [4, -1, 6] '
            "optional: true allow_ragged_batch: true reshape { shape: [2, 2, -1, 3, 2] } }"
            ' input { name: "s" data_type: TYPE_INT8 dims: 1 reshape { } }'
            ' output { name: "y" data_type: TYPE_BOOL dims: 1 label_filename: "labels.txt" }'
        )
        assert config.inputs == (
            TensorConfig(
                name="x",
                datatype="BF16",
                shape=(-1, 4, -1, 6),
                optional=True,
                model_shape=(-1, 2, 2, -1, 3, 2),
                ragged=True,
            ),
            TensorConfig(name="s", datatype="INT8", shape=(-1, 1), model_shape=(-1,)),
        )
        assert config.outputs[0].labels == "labels.txt"

    def test_batch_inputs_one_for_each_target(self) -> None:
        config = config_of(
            "max_batch_size: 2 " + IO + "batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT "
            'target_name: ["a", "b"] data_type: TYPE_FP32 source_input: "x" }'
        )
        common: dict[str, Any] = {"datatype": "FP32", "kind": "BATCH_ACCUMULATED_ELEMENT_COUNT"}
        assert config.batch_inputs == tuple(
            BatchInputConfig(name=name, source="x", **common) for name in "ab"
        )

    def test_warmups(self) -> None:
        config = config_of(
            IO + 'model_warmup { name: "w" batch_size: 3 count: 2 inputs { key: "x" value { '
            "data_type: TYPE_FP32 dims: 4 random_data: true } } }"
            'model_warmup { inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 '
            'input_data_file: "raw" } } }'
        )
        common: dict[str, Any] = {"datatype": "FP32", "shape": [4]}
        assert config.warmup == (
            WarmupConfig(name="w", rows=3, count=2, inputs={"x": common | {"data": "random"}}),
            WarmupConfig(inputs={"x": common | {"data": "raw"}}),
        )


class TestBatchingAndQueue:
    @pytest.mark.parametrize(
        ("text", "stateless", "rows"),
        [
            ("max_batch_size: 8", True, 8),
            ("max_batch_size: 8", False, 1),  # a Python model may look at one request only
            ("max_batch_size: 8 dynamic_batching { }", False, 8),
            ("max_batch_size: 8 sequence_batching { }", False, 8),
            ("max_batch_size: 0", True, 1),
            ("", True, 0),  # signature and rows are both the file's to tell: measured
            (IO, True, 1),
            ("", False, 1),
        ],
    )
    def test_rows(self, text: str, *, stateless: bool, rows: int) -> None:
        assert config_of(text, stateless=stateless).batching.max_batch_size == rows

    def test_queue_and_priorities(self) -> None:
        config = config_of(
            "max_batch_size: 4 dynamic_batching { priority_levels: 3 default_priority_level: 2 "
            "default_queue_policy { default_timeout_microseconds: 1500000 max_queue_size: 7 } }"
        )
        assert (config.priority_levels, config.default_priority) == (3, 2)
        assert (config.queue.timeout_s, config.queue.max_queue_size) == (1.5, 7)

    def test_an_endless_timeout_is_cut(self) -> None:
        text = "dynamic_batching { default_queue_policy { default_timeout_microseconds: %d } }"
        assert config_of(text % (1 << 60)).queue.timeout_s == 86_400


class TestSequences:
    CONTROLS = (
        'control_input { name: "S" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 2] }'
        " control { kind: CONTROL_SEQUENCE_END bool_false_true: [false, true] } }"
        'control_input { name: "C" control { kind: CONTROL_SEQUENCE_CORRID '
        "data_type: TYPE_STRING } }"
    )

    def test_controls(self) -> None:
        sequence = config_of(
            "max_batch_size: 4 sequence_batching { direct { } "
            "max_sequence_idle_microseconds: 2500000 " + self.CONTROLS + "}"
        ).sequence
        assert sequence is not None
        assert (sequence.strategy, sequence.idle_timeout_s) == ("direct", 2.5)
        assert sequence.controls == (
            ControlConfig(name="S", kind="start", datatype="FP32", true_value=2.0),
            ControlConfig(name="S", kind="end", datatype="BOOL"),
            ControlConfig(name="C", kind="corrid", datatype="BYTES"),
        )

    def test_oldest_and_states(self) -> None:
        sequence = config_of(
            "max_batch_size: 4 sequence_batching { oldest { max_candidate_sequences: 9 } "
            'iterative_sequence: true state { input_name: "i" output_name: "o" '
            "data_type: TYPE_INT32 dims: [-1] "
            'initial_state { data_type: TYPE_INT32 dims: 3 data_file: "raw" } } }'
        ).sequence
        assert sequence is not None
        assert (sequence.strategy, sequence.max_sequences) == ("oldest", 9)
        assert sequence.iterative
        assert sequence.idle_timeout_s == 1.0
        assert sequence.states == (
            StateConfig(
                input_name="i",
                output_name="o",
                datatype="INT32",
                shape=(-1, 3),
                initial_file="initial_state/raw",
            ),
        )


class TestTheRest:
    @pytest.mark.parametrize(
        ("text", "field", "value"),
        [
            ("instance_group [{ count: 2 }, { count: 3 kind: KIND_CPU }]", "instances", 5),
            ("instance_group { kind: KIND_CPU }", "instances", 0),
            ("instance_group [{ count: 2 }, { count: 3 passive: true }]", "instances", 2),
            ("version_policy { latest { num_versions: 2 } }", "versions", "latest:2"),
            ("version_policy { latest { } }", "versions", "latest:1"),
            ("version_policy { all { } }", "versions", "all"),
            ("version_policy: { specific { versions: [1, 3] } }", "versions", "1,3"),
            ("model_transaction_policy { decoupled: True }", "decoupled", True),
            ("response_cache { enable: true }", "response_cache", True),
            ('metric_tags { key: "a" value: "b" }', "metric_tags", {"a": "b"}),
            ('parameters { key: "a" value { string_value: "b" } }', "parameters", {"a": "b"}),
            (
                'parameters { key: "intra_op_thread_count" value { string_value: "3" } }',
                "threads",
                3,
            ),
            (
                (
                    "optimization { execution_accelerators { cpu_execution_accelerator "
                    '{ name: "openvino" } } }'
                ),
                "runtime",
                "openvino",
            ),
        ],
    )
    def test_fields(self, text: str, field: str, value: object) -> None:
        assert getattr(config_of(text), field) == value

    def test_ensembles(self) -> None:
        config = config_of(
            'platform: "ensemble" ensemble_scheduling { step [ { model_name: "a" model_version: -1 '
            'input_map { key: "x" value: "IN" } output_map { key: "y" value: "t" } }, '
            '{ model_name: "b" model_version: 3 input_map { key: "x" value: "t" } '
            'output_map { key: "y" value: "OUT" } } ] }'
        )
        assert config.ensemble == (
            EnsembleStep(model="a", input_map={"x": "IN"}, output_map={"y": "t"}),
            EnsembleStep(model="b", version="3", input_map={"x": "t"}, output_map={"y": "OUT"}),
        )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (
            "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 5 }",
            "dynamic_batching.max_queue_delay_microseconds",
        ),
        (
            "max_batch_size: 8 dynamic_batching { preferred_batch_size: [4] }",
            "dynamic_batching.preferred_batch_size",
        ),
        ("instance_group { kind: KIND_GPU gpus: 0 }", "instance_group[0].kind"),
        ("instance_group { kind: KIND_GPU gpus: 0 }", "instance_group[0].gpus"),
        ("instance_group { host_policy: 'p' }", "instance_group[0].host_policy"),
        ('cc_model_filenames { key: "7.0" value: "m" }', "cc_model_filenames"),
        ("model_operations { op_library_filename: 'lib.so' }", "model_operations"),
        ("optimization { cuda { graphs: true } }", "optimization.cuda"),
        ("sequence_batching { direct { max_queue_delay_microseconds: 5 } }", "sequence_batching"),
        (
            'parameters { key: "execution_mode" value { string_value: "1" } }',
            "parameters[execution_mode]",
        ),
    ],
)
def test_what_has_no_effect_is_said_once(text: str, path: str) -> None:
    notes = [note for note in made(text).notes if note.startswith(f"c:1: {path}")]
    assert len(notes) == 1
    assert " has no effect: " in notes[0]


def test_nothing_is_said_of_what_has_its_effect() -> None:
    assert made("max_batch_size: 8 dynamic_batching { } " + IO).notes == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: -1", "max_batch_size: expected 0 or more"),
        ("input { }", "input[0]: must specify 'name'"),
        ('input { name: "x" dims: 1 }', "input[0]: must specify 'data_type'"),
        ('input { name: "x" data_type: TYPE_FP32 }', "must specify 'dims' of 'x'"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 0 }', "input[0].dims: expected sizes of 1"),
        (
            (
                'input [{ name: "x" data_type: TYPE_FP32 dims: 1 },'
                ' { name: "x" data_type: TYPE_FP32 dims: 1 }]'
            ),
            "input[1].name: 'x' is there twice",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [3] } }',
            "input[0].reshape: has a different size",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] reshape { shape: [4, -1] } }',
            "has a different size",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { } }',
            "input[0].reshape: cannot be empty where max_batch_size is 0",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 4 format: FORMAT_NCHW }',
            "FORMAT_NCHW requires 3",
        ),
        (IO + 'batch_input { source_input: "z" data_type: TYPE_FP32 }', "there is no input 'z'"),
        (IO + 'batch_input { source_input: "x" data_type: TYPE_FP64 }', "data_type must be one of"),
        (
            'model_warmup { inputs { key: "x" value { data_type: TYPE_FP32 } } }',
            "model_warmup[0].inputs[x]: must specify one of zero_data",
        ),
        ("dynamic_batching { preferred_batch_size: 4 }", "expected 1 to max_batch_size (0), got 4"),
        ("dynamic_batching { priority_levels: 2 }", "expected 1 to priority_levels (2), got 0"),
        ("version_policy { specific { } }", "expected at least one number above 0"),
        (
            "response_cache { enable: true } model_transaction_policy { decoupled: true }",
            "response_cache.enable: cannot stand beside model_transaction_policy.decoupled",
        ),
        ('platform: "ensemble"', "an ensemble needs ensemble_scheduling"),
        ("ensemble_scheduling { }", 'needs platform: "ensemble"'),
        ('platform: "ensemble" ensemble_scheduling { }', "must specify 'step'"),
        (
            'platform: "ensemble" ensemble_scheduling { step { model_name: "a" } }',
            "ensemble_scheduling.step[0]: must specify 'input_map'",
        ),
        (
            'platform: "ensemble" instance_group { } ensemble_scheduling { }',
            "instance_group: cannot be said of an ensemble",
        ),
        (
            'sequence_batching { control_input { name: "c" control { } } }',
            "must specify exactly one of int32_false_true",
        ),
        (
            'sequence_batching { control_input { name: "c" control { int32_false_true: 1 } } }',
            "expected two values, got 1",
        ),
        (
            (
                'sequence_batching { control_input { name: "c" '
                "control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32 } } }"
            ),
            "expected one of UINT64",
        ),
        ("sequence_batching { state { } }", "state[0]: must specify 'input_name'"),
        (
            'parameters { key: "intra_op_thread_count" value { string_value: "x" } }',
            "expected a whole number of threads",
        ),
    ],
)
def test_what_triton_refuses_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(text)
    assert re.match("c:[12]: ", caught.value.message)
    assert message in caught.value.message
