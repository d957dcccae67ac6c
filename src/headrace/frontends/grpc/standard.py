"""The services every gRPC server has: ``grpc.health.v1.Health`` and server reflection.

Sources: https://grpc.io/docs/guides/health-checking and https://grpc.io/docs/guides/reflection;
reflection under its two names, v1 and v1alpha, which differ in nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError

from headrace import protos
from headrace.engine.endings import shutting_down
from headrace.errors import InvalidRequest, ModelNotFound
from headrace.frontends.grpc.call import Call, Incoming, LongCalls, Method, Methods
from headrace.frontends.grpc.service import SERVICE, unary_of

_HEALTH = "grpc.health.v1.Health"
_REFLECTIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
_REFLECTION = "ServerReflection"

_WATCH_S = 1.0
"""Readiness is asked so often where somebody watches it; nothing tells of its changes."""

SERVICES = (SERVICE, _HEALTH, *(f"{package}.{_REFLECTION}" for package in _REFLECTIONS))


def standard_methods(is_ready: Callable[[], bool], long_calls: LongCalls) -> Methods:
    """Path -> method. Streams are entered in ``long_calls``."""
    health = _Health(is_ready, long_calls)
    check = "grpc.health.v1.HealthCheckRequest"
    table = {
        f"/{_HEALTH}/Check".encode(): Method(unary=unary_of(check, health.check)),
        f"/{_HEALTH}/Watch".encode(): Method(unary=health.watch),
    }
    for package in _REFLECTIONS:
        path = f"/{package}.{_REFLECTION}/ServerReflectionInfo".encode()
        table[path] = Method(streaming=_reflection(package, long_calls))
    return table


class _Health:
    def __init__(self, is_ready: Callable[[], bool], long_calls: LongCalls) -> None:
        self._is_ready = is_ready
        self._long_calls = long_calls

    async def check(self, asked: Any) -> Any:
        if asked.service and asked.service not in SERVICES:
            raise ModelNotFound(
                f"there is no service '{asked.service}'",
                code="unknown_service",
                hint=f"the services are {', '.join(SERVICES)}",
            )
        return self._answer(asked.service)

    def _answer(self, service: str) -> Any:
        message = protos.message("grpc.health.v1.HealthCheckResponse")
        if service and service not in SERVICES:
            return message(status="SERVICE_UNKNOWN")
        return message(status="SERVING" if self._is_ready() else "NOT_SERVING")

    def watch(self, call: Call, message: bytes) -> None:
        """The status now and whenever it changes, until the client leaves."""
        asked = _parsed(protos.message("grpc.health.v1.HealthCheckRequest"), message)
        watch = _Watch(call, lambda: self._answer(asked.service).SerializeToString())
        self._long_calls.add(watch)
        watch.look()


class _Watch:
    """One client that is told of every change."""

    def __init__(self, call: Call, answer: Callable[[], bytes]) -> None:
        self._call = call
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._told = b""
        self._timer: asyncio.TimerHandle | None = None
        call.cancel = self._stop

    def look(self) -> None:
        """Now, and again before long."""
        if not self._call.closed:
            self._tell()
            self._timer = self._loop.call_later(_WATCH_S, self.look)

    def drain(self) -> None:
        """See ``LongCall``."""
        self._stop()
        self._tell()
        self._call.fail(shutting_down())

    def _tell(self) -> None:
        now = self._answer()
        if now != self._told:
            self._told = now
            self._call.send(now)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _reflection(package: str, long_calls: LongCalls) -> Callable[[Call], Incoming]:
    request = protos.message(f"{package}.ServerReflectionRequest")
    response = protos.message(f"{package}.ServerReflectionResponse")

    class Reflection:
        """One client's questions, answered one by one."""

        def __init__(self, call: Call) -> None:
            self._call = call
            long_calls.add(self)

        def message(self, message: bytes) -> None:
            asked = _parsed(request, message)
            answer = response(valid_host=asked.host, original_request=asked)
            _reflect(asked, answer)
            self._call.send(answer.SerializeToString())

        def half_closed(self) -> None:
            self._call.end()

        def drain(self) -> None:
            self._call.fail(shutting_down())

    return Reflection


def _parsed(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise InvalidRequest(
            f"the message is no {kind.DESCRIPTOR.full_name}: {error}", code="malformed_protobuf"
        ) from None


def _reflect(asked: Any, answer: Any) -> None:
    pool = protos.pool()
    kind = asked.WhichOneof("message_request")
    try:
        if kind == "list_services":
            for name in SERVICES:
                answer.list_services_response.service.add(name=name)
            return
        if kind == "file_by_filename":
            file = pool.FindFileByName(asked.file_by_filename)
        elif kind == "file_containing_symbol":
            file = _file_of(asked.file_containing_symbol)
        else:
            raise KeyError(f"there are no extensions, and {kind} asks for one")
    except KeyError as error:
        answer.error_response.error_code = 5  # NOT_FOUND
        answer.error_response.error_message = str(error.args[0])
        return
    for each in _with_dependencies(file):
        answer.file_descriptor_response.file_descriptor_proto.append(each.serialized_pb)


def _file_of(symbol: str) -> Any:
    """Raises KeyError. The pool knows no methods, but clients ask for them too."""
    pool = protos.pool()
    parent, _, method = symbol.rpartition(".")
    try:
        return pool.FindFileContainingSymbol(symbol)
    except KeyError:
        with suppress(KeyError):
            service = pool.FindServiceByName(parent)
            if method in service.methods_by_name:
                return service.file
        raise


def _with_dependencies(file: Any) -> list[Any]:
    """The file, and what it imports: a client may ask for less, and never needs to ask again."""
    found = {file.name: file}
    for dependency in file.dependencies:
        found |= {each.name: each for each in _with_dependencies(dependency)}
    return list(found.values())
