"""ONNX Runtime: one session, shared by as many threads as may run it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headrace.errors import ConfigError, InferenceFailed, MissingExtra, ModelLoadError
from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.types import DYNAMIC, TensorSpec

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_BFLOAT16_ELEMENT = 16  # onnx.TensorProto.BFLOAT16
_QUIET = 4  # ONNX Runtime's own log: fatal only; errors reach the caller as exceptions


class OnnxRuntime:
    """Option ``providers``: names of execution providers, best first (default: the CPU)."""

    name = "onnxruntime"
    formats = ("onnx",)

    def load(self, artifact: Artifact, config: InstanceConfig) -> OnnxModel:
        """Makes the session. ``config.concurrency`` threads may run it at one time.

        Raises:
            ModelLoadError: ONNX Runtime does not take the file; says why.
            ConfigError: a provider is not there.
            MissingExtra: onnxruntime is not installed.
        """
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingExtra("serving ONNX", extra="all", package="onnxruntime") from error
        providers = _providers(artifact, ort.get_available_providers())
        try:
            session = ort.InferenceSession(
                str(artifact.path), _session_options(ort, config), providers=providers
            )
        except Exception as error:
            raise ModelLoadError(
                f"ONNX Runtime cannot load {artifact.path.name} of model '{artifact.name}': "
                f"{_useful(error)}",
                hint="export it again with an opset that this ONNX Runtime knows, or check that "
                "the file is whole",
            ) from error
        return OnnxModel(session, artifact.name, config.concurrency, ort)


class OnnxModel:
    """A session and its signature."""

    def __init__(self, session: Any, name: str, concurrency: int, ort: Any) -> None:
        self._session = session
        self._run: Callable[..., list[Any]] = session.run
        self._name = name
        self._ort = ort
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.inputs = tuple(_spec(value, name) for value in inputs)
        self.outputs = tuple(_spec(value, name) for value in outputs)
        self.axis_names = {value.name: tuple(value.shape or ()) for value in inputs}
        self.concurrency = concurrency
        self.shape_policy = ShapePolicy()
        self._input_names = [spec.name for spec in self.inputs]
        self._output_names = [spec.name for spec in self.outputs]
        self._only_input = self._input_names[0] if len(self._input_names) == 1 else ""
        kinds = {spec.datatype for spec in (*self.inputs, *self.outputs)}
        self._plain = not kinds & {"BYTES", "BF16"}

    def execute(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """One ``session.run``. See :class:`headrace.runtimes.base.LoadedModel`."""
        try:
            if self._only_input and self._plain:
                return self._run(self._output_names, {self._only_input: inputs[0]})
            feeds = {
                name: array
                for name, array in zip(self._input_names, inputs, strict=True)
                if array is not None
            }
            if self._plain:
                return self._run(self._output_names, feeds)
            return self._execute_converted(feeds)
        except InferenceFailed:
            raise
        except Exception as error:
            raise InferenceFailed(
                f"model '{self._name}' failed: {_useful(error)}", model=self._name
            ) from error

    def unload(self) -> None:
        """Lets go of the session, which frees its memory."""
        del self._run, self._session

    def _execute_converted(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """For what numpy and ONNX Runtime say differently: texts, and bfloat16."""
        kinds = {spec.name: spec.datatype for spec in self.inputs}
        values = {}
        for name, array in feeds.items():
            if kinds[name] == "BYTES":
                texts = np.empty(array.shape, dtype=object)
                texts.ravel()[:] = [_text(value, name) for value in array.ravel()]
                values[name] = self._ort.OrtValue.ortvalue_from_numpy(texts)
            elif kinds[name] == "BF16":
                values[name] = self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                    np.ascontiguousarray(array), _BFLOAT16_ELEMENT
                )
            else:
                values[name] = self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        results = self._session.run_with_ort_values(self._output_names, values)
        return [
            _from_ort(value, spec.datatype)
            for value, spec in zip(results, self.outputs, strict=True)
        ]


def _session_options(ort: Any, config: InstanceConfig) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # Idle threads that spin eat the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A memory pattern is kept for every new combination of shapes, and there is no end of
    # those where lengths vary.
    options.enable_mem_pattern = False
    return options


def _providers(artifact: Artifact, available: list[str]) -> list[str]:
    wanted = artifact.options.get("providers")
    if wanted is None:
        return ["CPUExecutionProvider"]
    missing = [name for name in wanted if name not in available]
    if missing:
        raise ConfigError(
            f"model '{artifact.name}' asks for the execution provider {missing[0]!r}, which this "
            "ONNX Runtime does not have",
            hint=f"it has {', '.join(available)}",
            field="runtime_options.providers",
        )
    return list(wanted)


def _spec(value: Any, model: str) -> TensorSpec:
    optional = value.type.startswith("optional(")
    kind = value.type.removeprefix("optional(").rstrip(")") + ")" if optional else value.type
    datatype = _DATATYPES.get(kind)
    if datatype is None:
        raise ModelLoadError(
            f"'{value.name}' of model '{model}' is a {value.type}; only tensors can be served",
            hint="for scikit-learn models convert with zipmap off (headrace convert does)",
        )
    shape = tuple(size if isinstance(size, int) else DYNAMIC for size in value.shape or ())
    return TensorSpec(value.name, datatype, shape, optional)


def _from_ort(value: Any, datatype: str) -> np.ndarray:
    if datatype == "BF16":
        # There is no numpy bfloat16 to convert to; the bits are what we want.
        size = int(np.prod(value.shape(), dtype=object)) if value.shape() else 1
        return _bits_of(value, size).reshape(value.shape())
    array: np.ndarray = value.numpy()
    if datatype == "BYTES":
        encoded = np.empty(array.shape, dtype=object)
        encoded.ravel()[:] = [str(text).encode() for text in array.ravel()]
        return encoded
    return array


def _bits_of(value: Any, size: int) -> np.ndarray:
    import ctypes

    buffer = (ctypes.c_uint16 * size).from_address(value.data_ptr())
    return np.frombuffer(buffer, np.uint16).copy()


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InferenceFailed(f"input '{name}' holds bytes that are not UTF-8: {error}") from None


def _useful(error: Exception) -> str:
    """ONNX Runtime's message without its source locations and error numbers."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", text)
    return re.sub(r"/\S+?:\d+ \S+(?:\(.*?\))? ", "", text)
