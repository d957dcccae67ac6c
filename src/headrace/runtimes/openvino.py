"""OpenVINO: one compiled model, a pool of infer requests. Runs ONNX and OpenVINO's own IR."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.errors import (
    HeadraceError,
    InferenceFailed,
    InvalidRequest,
    MissingExtra,
    ModelLoadError,
)
from headrace.runtimes.base import Artifact, InstanceConfig, ShapePolicy
from headrace.runtimes.compiled import CompiledPlace, place_of
from headrace.runtimes.loops import may_be_endless
from headrace.runtimes.openvino_errors import load_hint, useful
from headrace.runtimes.options import read_options
from headrace.types import DTYPE_OF, DYNAMIC, TensorSpec

_DATATYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "bf16": "BF16",
    "f32": "FP32",
}
_REFUSED = {
    "f64": "the CPU plugin computes FP64 as FP32",
    "u64": "the CPU plugin computes UINT64 as INT32",
    "string": "string tensors need OpenVINO's tokenizers extension",
}
"""Refused when the model is loaded: a wrong answer is worse than none (OpenVINO 2026.4)."""

_INT32 = np.iinfo(np.int32)

KERNELS_KEPT = 1024
"""Compiled kernels kept: one for each operation and shape met. OpenVINO's own limit of 5,000
is none in practice.

Too few, and every batch compiles again: an MLP of 17 layers in batches of 1-32 rows takes
5.1 ms with 64 kernels, 2.1 ms with 256, 0.33 ms with 1,024 or more. Too many, and memory
grows: after 1,500 batch sizes of that MLP 3,065 MB with OpenVINO's limit, 775 MB with 1,024;
after 4,259 shapes of a 6-layer encoder 2,014 MB and growing, against 625 MB, nearly flat,
after 1,618.
"""

SHAPE_POLICY = ShapePolicy(row_multiple=2, length_multiple=16)
"""Fewer shapes, for little work. 1,800 batches of 1-32 x 4-259 tokens through the 6-layer
encoder (CPU s; MB added): exact 35 and 512, lengths to 16 33 and 195, rows to 2 too 33 and
127, rows to 4 33 and 99. But rows to 4 cost where batches are small: 400 batches of 1-8 short
texts through an encoder of MiniLM's size take 8.5 s exact, 9.7 s with 2, 10.8 s with 4."""


class OpenVinoOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``runtime_options`` of a model that OpenVINO runs."""

    device: str = "CPU"
    properties: dict[str, str | int | float | bool] = {}
    """Any OpenVINO property (``CACHE_DIR``, ``INFERENCE_PRECISION_HINT`` ...); wins over what
    headrace would set."""


class OpenVinoRuntime:
    """Runs ``.onnx`` and ``.xml`` + ``.bin``. See :class:`OpenVinoOptions`.

    Computes in FP32 unless ``properties`` say otherwise, so that answers are the original's.
    INT64 is computed as INT32 by OpenVINO's CPU plugin; inputs beyond it are refused, what
    overflows inside the model is not seen.
    """

    name = "openvino"
    formats: tuple[str, ...] = ("onnx", "openvino")

    def load(self, artifact: Artifact, config: InstanceConfig) -> OpenVinoModel:
        """Reads and compiles. Reserves ``threads x concurrency`` threads.

        Raises:
            ModelLoadError: OpenVINO does not take the file, has no operator for part of it,
                or would not compute one of its datatypes exactly.
            MissingExtra: openvino is not installed.
        """
        options = read_options(artifact, OpenVinoOptions, self.name)
        library = _library()
        place = _place(library, artifact, options, config)
        try:
            compiled = library.load(artifact, options, config, place)
        except ModelLoadError:
            raise
        except Exception as error:
            text = useful(error)
            raise ModelLoadError(
                f"OpenVINO cannot load {artifact.path.name} of model '{artifact.name}': {text}",
                hint=load_hint(text, artifact.path),
                model=artifact.name,
                path=str(artifact.path),
            ) from error
        model = OpenVinoModel(library, compiled, artifact.name, config.concurrency)
        model.may_be_endless = partial(may_be_endless, artifact.path)
        if place is not None:
            model.compiled = _Compiled(place, library, artifact, options, config)
        return model


class OpenVinoModel:
    """A compiled model. A :class:`headrace.runtimes.base.LoadedModel`."""

    def __init__(self, library: _Library, compiled: Any, name: str, concurrency: int) -> None:
        self.inputs = tuple(_spec(port, name, i, "input") for i, port in enumerate(compiled.inputs))
        self.outputs = tuple(
            _spec(port, name, i, "output") for i, port in enumerate(compiled.outputs)
        )
        if not self.outputs:
            raise ModelLoadError(
                f"model '{name}' has no outputs",
                hint="the file is empty or cut short: fetch it again",
                model=name,
            )
        self.concurrency = concurrency
        self.shape_policy = SHAPE_POLICY
        self.compiled: _Compiled | None = None
        self.may_be_endless: Callable[[], bool] = lambda: False
        self._name = name
        self._wrap = library.tensor
        self._bfloat16 = library.bfloat16
        self._special = [i for i, spec in enumerate(self.inputs) if spec.datatype == "INT64"]
        self._bits_in = {i for i, spec in enumerate(self.inputs) if spec.datatype == "BF16"}
        self._bits_out = [i for i, spec in enumerate(self.outputs) if spec.datatype == "BF16"]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(concurrency):
            request = compiled.create_infer_request()
            self._idle.put(request)
        self._stateful = bool(request.query_state())

    def execute(self, inputs: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        """One ``infer`` of an idle request. See :class:`headrace.runtimes.base.LoadedModel`."""
        request = self._idle.get()
        try:
            return self._infer(request, inputs)
        except HeadraceError:
            raise
        except Exception as error:
            raise InferenceFailed(
                f"model '{self._name}' failed: {useful(error)}", model=self._name
            ) from error
        finally:
            self._idle.put(request)

    def unload(self) -> None:
        """Drops the infer requests and with them the compiled model."""
        while not self._idle.empty():
            self._idle.get()
        if self.compiled is not None:
            self.compiled.place.release()

    def keep_compiled(self) -> None:
        """See :class:`headrace.runtimes.base.LoadedModel`."""
        if self.compiled is not None:
            self.compiled.keep()

    def _infer(self, request: Any, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        # Set one by one, because infer(inputs) converts a wrong datatype in silence, keeps the
        # tensor of an earlier call where one is missing, and costs twice the CPU time.
        for index, (spec, array) in enumerate(zip(self.inputs, inputs, strict=True)):
            if array is None:
                raise InferenceFailed(f"input '{spec.name}' of '{self._name}' is missing")
            request.set_input_tensor(index, self._tensor(index, array))
        for index in self._special:
            _check_int32(inputs[index], self.inputs[index].name)
        if self._stateful:
            request.reset_state()  # a pooled request must not remember another caller
        results = list(request.infer().values())  # copies, which the caller owns
        for index in self._bits_out:
            results[index] = results[index].view(np.uint16)  # shown as float16
        return results

    def _tensor(self, index: int, array: np.ndarray) -> Any:
        if index in self._bits_in:
            array = np.require(array, requirements=("C", "W"))
            return self._wrap(array, array.shape, self._bfloat16)
        # Memory can be shared only if it is contiguous and writeable; else it is copied.
        return self._wrap(array, shared_memory=array.flags.carray)


class _Compiled:
    """How the blob gets to its place: a compilation of its own, with OpenVINO's own cache.

    ``export_model`` would do without compiling again, but holds the interpreter lock while it
    writes (130 ms for 90 MB), which every request would wait for; and a blob that
    ``import_model`` reads from a mapping crashes once Python lets go of the mapping (OpenVINO
    2026.4). With ``CACHE_DIR`` OpenVINO writes and maps the file itself.

    all-MiniLM-L6-v2 is loaded in 150 ms instead of 340 (two cores).
    """

    def __init__(
        self,
        place: CompiledPlace,
        library: _Library,
        artifact: Artifact,
        options: OpenVinoOptions,
        config: InstanceConfig,
    ) -> None:
        self.place = place
        self._library = library
        self._load = (artifact, options, config)

    def keep(self) -> None:
        self.place.keep(self._build)

    def _build(self, folder: Path) -> None:
        artifact, options, config = self._load
        self._library.compile(self._library.read(artifact), options, config, cache=folder)
        for blob in folder.iterdir():
            blob.chmod(0o644)  # OpenVINO makes it unreadable for another user of the same image


def _place(
    library: _Library, artifact: Artifact, options: OpenVinoOptions, config: InstanceConfig
) -> CompiledPlace | None:
    """Not where the owner has a cache of their own, nor for devices this was not tried on."""
    if options.device != "CPU" or "CACHE_DIR" in options.properties:
        return None
    facts = msgspec.json.encode((options, config), order="deterministic").decode()
    return place_of(artifact, OpenVinoRuntime.name, library.version, facts)


class _Library:
    """What is needed of the module ``openvino``, made once for the process."""

    def __init__(self) -> None:
        openvino = _import()
        from openvino.frontend import FrontEndManager

        self.tensor = openvino.Tensor
        self.bfloat16 = openvino.Type.bf16
        self.version = str(openvino.get_version())
        self._core = openvino.Core()
        # Kept, because a model's operators may live in the front-end's library.
        self._frontends = FrontEndManager()
        _prime(openvino)

    def load(
        self,
        artifact: Artifact,
        options: OpenVinoOptions,
        config: InstanceConfig,
        place: CompiledPlace | None,
    ) -> Any:
        """The compiled model, from its place where that has it. Raises whatever OpenVINO does."""
        model = self.read(artifact)
        entry = place.find() if place is not None else None
        if place is None or entry is None:
            return self.compile(model, options, config)
        try:
            compiled = self.compile(model, options, config, cache=entry)
        except Exception as error:  # noqa: BLE001 # whatever it is, the original tells it better
            place.refuse(useful(error))
            return self.compile(model, options, config)
        if not compiled.get_property("LOADED_FROM_CACHE"):  # compiled again, so all is well
            place.refuse("OpenVINO did not take it and compiled the model again")
        return compiled

    def read(self, artifact: Artifact) -> Any:
        """By the one front-end of the format: ``Core.read_model`` offers a file that one does
        not know to all the others, which print to stderr and may take it for something else.
        """
        path = str(artifact.path)
        if artifact.format == "onnx":
            frontend = self._frontends.load_by_framework("onnx")
            return frontend.convert(frontend.load(path))
        if not self._frontends.load_by_framework("ir").supported(path):
            raise ModelLoadError(
                f"{artifact.path.name} of model '{artifact.name}' is not OpenVINO IR: expected "
                "an XML file that starts with <net>",
                hint=load_hint("", artifact.path),
                model=artifact.name,
            )
        return self._core.read_model(path)

    def compile(
        self,
        model: Any,
        options: OpenVinoOptions,
        config: InstanceConfig,
        cache: Path | None = None,
    ) -> Any:
        """Compiles for the options' device, within the threads of ``config``.

        What ``cache`` has of it is read from there, what it has not is written there.
        """
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY" if config.concurrency == 1 else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if options.device == "CPU":
            properties |= {
                "NUM_STREAMS": config.concurrency,
                "INFERENCE_NUM_THREADS": config.threads * config.concurrency,
                # Every process and every model would pin its threads to the same first cores.
                "ENABLE_CPU_PINNING": False,
                # Otherwise the scale of a quantised activation depends on its neighbours in
                # the batch, and so would the answer.
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
                "CPU_RUNTIME_CACHE_CAPACITY": KERNELS_KEPT,
            }
        properties |= options.properties
        if cache is not None:
            properties["CACHE_DIR"] = str(cache)
        return self._core.compile_model(model, options.device, properties)


_lock = threading.Lock()
_loaded: list[_Library] = []


def _library() -> _Library:
    with _lock:
        if not _loaded:
            try:
                _loaded.append(_Library())
            except ImportError as error:
                raise MissingExtra("OpenVINO", extra="openvino", package="openvino") from error
        return _loaded[0]


def _import() -> Any:
    """The module without its converter of other formats: 100 of the 170 ms that it takes.

    OpenVINO does without it where it cannot be imported. Later imports find it again.
    """
    converter = "openvino.tools.ovc"
    hidden = converter not in sys.modules and "openvino" not in sys.modules
    if hidden:
        sys.modules[converter] = None  # type: ignore[assignment] # how Python says "not there"
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[converter]
    return openvino


def _prime(openvino: Any) -> None:
    """Makes OpenVINO's tables of datatypes, from one thread.

    They are made when they are first used, and the thread that makes them lets go of the
    interpreter lock meanwhile. A second one then waits for the table, holding that lock: 9 of
    100 processes whose first ``infer(arrays)`` came from two threads hung (OpenVINO 2026.4).
    """
    for dtype in {*DTYPE_OF.values()} - {np.dtype(object)}:
        tensor = openvino.Tensor(np.zeros(1, dtype), shared_memory=True)
        tensor.element_type.to_dtype()
        _ = tensor.data


def _spec(port: Any, model: str, index: int, role: str) -> TensorSpec:
    name = _name(port) or f"{role}_{index}"
    kind = port.element_type.get_type_name()
    datatype = _DATATYPES.get(kind)
    if datatype is None:
        why = _REFUSED.get(kind, "no protocol can carry that datatype")
        raise ModelLoadError(
            f"OpenVINO cannot serve {role} '{name}' ({kind}) of model '{model}': {why}",
            hint='set runtime = "onnxruntime", or convert the model to FP32 or INT32',
            model=model,
        )
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:  # of an output; the CPU plugin refuses such inputs
        return TensorSpec(name, datatype, (DYNAMIC,))
    sizes = tuple(DYNAMIC if size.is_dynamic else size.get_length() for size in shape)
    return TensorSpec(name, datatype, sizes)


def _name(port: Any) -> str:
    """What the file calls the tensor; "" if it has no name.

    A port whose Identity or Cast was optimised away has the names of both tensors, in no
    order; which of them is the model's own, only the port's node still knows.
    """
    names = port.get_names()
    own = str(port.node.get_friendly_name()).removesuffix("/sink_port_0")
    return own if own in names else min(names, default="")


def _check_int32(array: np.ndarray | None, name: str) -> None:
    if array is None or not array.size:
        return
    low, high = int(array.min()), int(array.max())
    if low < _INT32.min or high > _INT32.max:
        raise InvalidRequest(
            f"input '{name}' holds {low if low < _INT32.min else high}: OpenVINO computes INT64 "
            "as INT32",
            hint='set runtime = "onnxruntime" for this model',
            input=name,
        )
