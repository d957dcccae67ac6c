"""``inference.GRPCInferenceService``: what each method means, over any transport.

Messages, and what the dialects of Triton, KServe and MLServer have in common, are in
``protos/inference.proto``. Three differences are bridged here:

- ``RepositoryModelLoad`` and ``Unload``: KServe names the model in field 1, which Triton calls
  ``repository_name``. If field 2 is empty, field 1 is the model.
- their answers always have KServe's fields; Triton's clients pass over what they do not know.
- ``ModelStreamInfer`` answers in Triton's form, or in MLServer's where metadata asks for it
  (``infer.DIALECT``).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from headrace import protos
from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    ModelNotFound,
    PayloadTooLarge,
    Unsupported,
)
from headrace.frontends.codecs import proto_guard
from headrace.frontends.codecs.proto_parameters import read_parameters
from headrace.frontends.control import Control
from headrace.frontends.grpc.call import Call, Method, Methods, Unary
from headrace.frontends.grpc.infer import InferMethods
from headrace.frontends.peer import Peer
from headrace.frontends.site_guard import SiteGuard
from headrace.frontends.slices import INLINE_BYTES
from headrace.types import ModelMetadata

_LOG = logging.getLogger("headrace.grpc")

_FIELDS_MAX = 10_000
"""Files of one load request."""

SERVICE = "inference.GRPCInferenceService"

Handler = Callable[[Any], Awaitable[Any]]
"""A request message in, a response message out; may raise HeadraceError."""

PeerHandler = Callable[[Any, Peer], Awaitable[Any]]
"""The same for one that depends on who asks."""


class Models(Protocol):
    """What is asked about models; ``engine.catalog.Catalog`` is it."""

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """The public signature."""
        ...

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Triton's ModelConfig as JSON values."""
        ...

    def is_ready(self, name: str = "", version: str = "") -> bool:
        """One model, or all."""
        ...


class InferenceService:
    """The table of methods, and the cold ones; the hot ones are ``InferMethods``'.

    Args:
        infer: ``ModelInfer`` and ``ModelStreamInfer``.
        models: what is served.
        control: the running server.
        version: of headrace.
        extensions: as ``GET /v2`` advertises them.
        is_ready: whether the server takes requests.
        guard: checks what changes something; None: one that knows no hosts but loopback's.
    """

    def __init__(
        self,
        infer: InferMethods,
        models: Models,
        control: Callable[[], Control],
        *,
        version: str,
        extensions: tuple[str, ...],
        is_ready: Callable[[], bool],
        guard: SiteGuard | None = None,
    ) -> None:
        self._infer = infer
        self._models = models
        self._control = control
        self._version = version
        self._extensions = extensions
        self._is_ready = is_ready
        self._guard = guard or SiteGuard()

    def methods(self) -> Methods:
        """Path -> method."""
        reads: dict[str, Handler] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "CudaSharedMemoryStatus": self._cuda_status,
        }
        changes: dict[str, Handler] = {
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "CudaSharedMemoryRegister": self._no_cuda,
            "CudaSharedMemoryUnregister": self._cuda_unregister,
        }
        settings: dict[str, Handler] = {
            "TraceSetting": self._trace_setting,
            "LogSettings": self._log_settings,
        }
        table = {_path(name): Method(unary=_unary(name, f)) for name, f in reads.items()}
        for name, handler in changes.items():
            table[_path(name)] = Method(unary=guarded(_unary(name, handler), name, self._guard))
        for name, handler in settings.items():
            unary = guarded(_unary(name, handler), name, self._guard, unless=_only_reads(name))
            table[_path(name)] = Method(unary=unary)
        regions: dict[str, tuple[PeerHandler, bool]] = {
            "Status": (self._shared_memory_status, False),
            "Register": (self._register_shared_memory, True),
            "Unregister": (self._unregister_shared_memory, True),
        }
        for verb, (peer_handler, changes_state) in regions.items():
            name = f"SystemSharedMemory{verb}"
            unary = peer_unary_of(f"inference.{name}Request", peer_handler)
            table[_path(name)] = Method(
                unary=guarded(unary, name, self._guard) if changes_state else unary
            )
        for path, method in table.items():
            assert method.unary is not None
            table[path] = Method(unary=bounded(method.unary, loads=path.endswith(b"ModelLoad")))
        table[_path("ModelInfer")] = Method(unary=self._infer.infer)
        table[_path("ModelStreamInfer")] = Method(streaming=self._infer.stream)
        return table

    # -- health and metadata ---------------------------------------------------------------------

    async def _server_live(self, _: Any) -> Any:
        return _message("ServerLiveResponse")(live=True)

    async def _server_ready(self, _: Any) -> Any:
        return _message("ServerReadyResponse")(ready=self._is_ready())

    async def _model_ready(self, asked: Any) -> Any:
        try:
            ready = self._models.is_ready(_named(asked.name), asked.version)
        except ModelNotFound:
            ready = False
        return _message("ModelReadyResponse")(ready=ready)

    async def _server_metadata(self, _: Any) -> Any:
        return _message("ServerMetadataResponse")(
            name="headrace", version=self._version, extensions=self._extensions
        )

    async def _model_metadata(self, asked: Any) -> Any:
        found = self._models.metadata(_named(asked.name), asked.version)
        answer = _message("ModelMetadataResponse")(
            name=found.name, versions=found.versions, platform=found.platform
        )
        for specs, told in ((found.inputs, answer.inputs), (found.outputs, answer.outputs)):
            for spec in specs:
                told.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return answer

    async def _model_config(self, asked: Any) -> Any:
        config = self._models.model_config(_named(asked.name), asked.version)
        return _filled("ModelConfigResponse", {"config": config})

    async def _model_statistics(self, asked: Any) -> Any:
        found = await self._control().statistics(asked.name, asked.version)
        return _filled("ModelStatisticsResponse", found)

    # -- repository ------------------------------------------------------------------------------

    async def _repository_index(self, asked: Any) -> Any:
        answer = _message("RepositoryIndexResponse")()
        for each in self._control().index(ready_only=asked.ready):
            answer.models.add(
                name=each.name, version=each.version, state=each.state, reason=each.reason
            )
        return answer

    async def _load(self, asked: Any) -> Any:
        name = _named(asked.model_name or asked.repository_name)
        await self._control().load(name, _repository_parameters(asked.parameters))
        return _message("RepositoryModelLoadResponse")(model_name=name, isLoaded=True)

    async def _unload(self, asked: Any) -> Any:
        name = _named(asked.model_name or asked.repository_name)
        parameters = _repository_parameters(asked.parameters)
        await self._control().unload(name, dependents=parameters.get("unload_dependents") is True)
        return _message("RepositoryModelUnloadResponse")(model_name=name, isUnloaded=True)

    # -- shared memory ---------------------------------------------------------------------------

    async def _shared_memory_status(self, asked: Any, peer: Peer) -> Any:
        answer = _message("SystemSharedMemoryStatusResponse")()
        for region in self._control().shared_memory(peer, asked.name):
            told = answer.regions[region["name"]]
            told.name, told.key = region["name"], region["key"]
            told.offset, told.byte_size = region["offset"], region["byte_size"]
        return answer

    async def _register_shared_memory(self, asked: Any, peer: Peer) -> Any:
        await self._control().register_shared_memory(
            peer, asked.name, key=asked.key, offset=asked.offset, byte_size=asked.byte_size
        )
        return _message("SystemSharedMemoryRegisterResponse")()

    async def _unregister_shared_memory(self, asked: Any, peer: Peer) -> Any:
        await self._control().unregister_shared_memory(peer, asked.name)
        return _message("SystemSharedMemoryUnregisterResponse")()

    async def _cuda_status(self, _: Any) -> Any:
        return _message("CudaSharedMemoryStatusResponse")()

    async def _no_cuda(self, asked: Any) -> Any:
        raise Unsupported(
            f"failed to register CUDA shared memory region: '{asked.name}': this server has no GPU "
            "runtime",
            hint="use system shared memory",
        )

    async def _cuda_unregister(self, _: Any) -> Any:
        return _message("CudaSharedMemoryUnregisterResponse")()

    # -- settings --------------------------------------------------------------------------------

    async def _trace_setting(self, asked: Any) -> Any:
        update = {name: list(setting.value) or None for name, setting in asked.settings.items()}
        found = await self._control().trace_setting(
            asked.model_name, _single_values(update) or None
        )
        answer = _message("TraceSettingResponse")()
        for name, value in found.items():
            values = value if isinstance(value, list | tuple) else [value]
            answer.settings[name].value.extend(map(str, values))
        return answer

    async def _log_settings(self, asked: Any) -> Any:
        update = {
            name: getattr(setting, setting.WhichOneof("parameter_choice") or "string_param")
            for name, setting in asked.settings.items()
        }
        found = await self._control().log_settings(update or None)
        answer = _message("LogSettingsResponse")()
        for name, value in found.items():
            told = answer.settings[name]
            if isinstance(value, bool):
                told.bool_param = value
            elif isinstance(value, int):
                told.uint32_param = value
            else:
                told.string_param = str(value)
        return answer


def unary_of(request: str, handler: Handler) -> Unary:
    """A method of the cold kind: parsed, awaited in a task of its own, answered."""

    async def answer(asked: Any, _: Peer) -> Any:
        return await handler(asked)

    return peer_unary_of(request, answer)


def peer_unary_of(request: str, handler: PeerHandler) -> Unary:
    """The same, for a handler that depends on who asks."""
    parse = protos.message(request).FromString
    tasks: set[asyncio.Task[None]] = set()

    async def run(call: Call, asked: Any) -> None:
        try:
            answer = await handler(asked, call.peer())
            call.finish(answer.SerializeToString())
        except HeadraceError as error:
            call.fail(error)
        except Exception as error:  # noqa: BLE001 - one call must not end the others
            _LOG.exception("%s failed", request)
            call.fail(error)

    def method(call: Call, message: bytes) -> None:
        try:
            asked = parse(message)
        except DecodeError as error:
            raise InvalidRequest(
                f"the message is no {request}: {error}", code="malformed_protobuf"
            ) from None
        task = asyncio.get_running_loop().create_task(run(call, asked))
        # Not cancelled when the client leaves: half of a load or unload is worse than all of it.
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return method


def bounded(unary: Unary, *, loads: bool) -> Unary:
    """The method, for messages that cannot become many objects.

    Args:
        loads: the message may be large, because files are in it.
    """

    def method(call: Call, message: bytes) -> None:
        if len(message) > INLINE_BYTES:
            if not loads:
                raise PayloadTooLarge(
                    f"the message has {len(message)} bytes, this method takes {INLINE_BYTES}",
                    allowed=INLINE_BYTES,
                )
            proto_guard.check_fields(message, _FIELDS_MAX)
        unary(call, message)

    return method


def guarded(
    unary: Unary, name: str, guard: SiteGuard, *, unless: Callable[[bytes], bool] = lambda _: False
) -> Unary:
    """The method, behind the guard, for browsers that were made to speak gRPC.

    Args:
        name: of the method, for the log.
        unless: whether a message may pass unchecked.
    """

    def method(call: Call, message: bytes) -> None:
        def values(key: str) -> list[str]:
            wanted = key.encode()
            return [value.decode("latin-1") for found, value in call.metadata if found == wanted]

        if not unless(message):
            peer = call.peer()
            guard.check(values, call.authority, on_loopback=peer.on_loopback)
            guard.note(name, None if peer.remote is None else peer.remote.host)
        unary(call, message)

    return method


def _only_reads(name: str) -> Callable[[bytes], bool]:
    """Whether a request for settings changes none."""
    parse = protos.message(f"inference.{name}Request").FromString

    def reads(message: bytes) -> bool:
        try:
            return not parse(message).settings
        except DecodeError:
            return False

    return reads


def _unary(name: str, handler: Handler) -> Unary:
    return unary_of(f"inference.{name}Request", handler)


def _path(name: str) -> bytes:
    return f"/{SERVICE}/{name}".encode()


def _message(name: str) -> Any:
    return protos.message(f"inference.{name}")


def _filled(name: str, values: Mapping[str, Any]) -> Any:
    """A message from the JSON that the REST protocol has for it; names it lacks are left out."""
    plain = json.loads(json.dumps(values))
    return json_format.ParseDict(plain, _message(name)(), ignore_unknown_fields=True)


def _named(name: str) -> str:
    if not name:
        raise InvalidRequest("the request names no model", code="missing_model_name")
    return name


def _repository_parameters(parameters: Any) -> dict[str, Any]:
    return read_parameters(parameters) if parameters else {}


def _single_values(update: dict[str, Any]) -> dict[str, Any]:
    """Every setting but the level has one value; the REST protocol has it without a list."""
    return {
        name: value[0] if value is not None and name != "trace_level" else value
        for name, value in update.items()
    }
