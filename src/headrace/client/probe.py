"""Before the run: is there a server, does it have the model, does it like our requests?

A load test of a wrong URL, a wrong model or bodies that are refused would measure how fast
the server says no. So one request is sent first, and what is wrong with it is said in one
line with what to do.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import msgspec

from headrace.client.connection import ConnectFailed, Connection, open_connection
from headrace.client.payloads import Payloads
from headrace.client.spec import BenchSpec
from headrace.client.target import Target
from headrace.client.wire import HttpHead, error_text
from headrace.errors import (
    CapacityError,
    ConfigError,
    HeadraceError,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
)
from headrace.types import ModelMetadata

_NOT_HTTP = ("closed", "lost", "malformed")
"""In the reasons of a connection whose other end does not understand us."""


class Answer(msgspec.Struct, frozen=True):
    """Of a single request."""

    status: int
    header_length: int
    body: bytes


class _OneAnswer:
    """The listener of a connection that is used once."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answered(self, connection: Connection) -> None:
        if not self.answer.done():
            self.answer.set_result(
                Answer(connection.status, connection.header_length, connection.body)
            )

    def lost(self, connection: Connection, tag: int, reason: str) -> None:
        del connection, tag
        if not self.answer.done():
            self.answer.set_exception(ConnectFailed(reason))


async def exchange(
    target: Target, request: bytes, kind: type[Connection], timeout_s: float
) -> Answer:
    """Sends one request on a connection of its own.

    Raises:
        ConnectFailed: no connection, or it broke before the answer, or none came in time.
    """
    listener = _OneAnswer()
    connection = await open_connection(target, lambda: kind(listener), timeout_s)
    try:
        connection.send(request, 0)
        async with asyncio.timeout(timeout_s):
            return await listener.answer
    except TimeoutError as error:
        raise ConnectFailed(f"no answer within {timeout_s:g} s") from error
    finally:
        connection.close()


class Probe:
    """Asks the server about itself and about one model, before any load."""

    def __init__(self, target: Target, spec: BenchSpec) -> None:
        self._target = target
        self._spec = spec
        version = f"/versions/{quote(spec.model_version, safe='')}" if spec.model_version else ""
        self._model_path = f"/v2/models/{quote(spec.model, safe='')}{version}"

    def head(self) -> HttpHead:
        """Path and headers of this run's requests."""
        openai = self._spec.payload.wire == "openai"
        path = "/v1/embeddings" if openai else f"{self._model_path}/infer"
        return HttpHead(self._target, path, self._spec.headers)

    async def server(self) -> str:
        """``name version`` of ``GET /v2``, "" where the server does not say.

        Raises:
            ConfigError: nothing listens there.
        """
        answer = await self._ask("/v2")
        try:
            facts = msgspec.json.decode(answer.body) if answer.status == 200 else {}
            return f"{facts.get('name', '')} {facts.get('version', '')}".strip()
        except (msgspec.DecodeError, AttributeError):
            return ""

    async def metadata(self) -> ModelMetadata:
        """``GET /v2/models/{name}``.

        Raises:
            ModelNotFound: the server does not know the model; the hint names those it does.
            HeadraceError: any other refusal, by its status.
        """
        answer = await self._ask(self._model_path)
        if answer.status != 200:
            raise await self._refusal(answer, "its metadata")
        try:
            return msgspec.json.decode(answer.body, type=ModelMetadata)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{self._target.url} does not describe models as V2 does: {error}",
                hint="is this the right port? for an OpenAI server add --openai",
            ) from error

    async def first_request(self, payloads: Payloads) -> None:
        """Sends the first body of the run.

        Raises:
            HeadraceError: it was refused, failed, or was answered with something else.
        """
        try:
            answer = await exchange(
                self._target, payloads.request(0), payloads.connection, self._spec.timeout_s
            )
        except ConnectFailed as failure:
            raise self._unreachable(failure) from failure
        if answer.status != 200:
            raise await self._refusal(answer, "the first request")
        if wrong := payloads.check(answer.status, answer.header_length, answer.body):
            raise InferenceFailed(
                f"the answer to the first request is not what it should be: {wrong}",
                hint="is this the right port, and the right wire form (--binary, --openai)?",
            )

    async def _ask(self, path: str, body: bytes | None = None) -> Answer:
        head = HttpHead(self._target, path, self._spec.headers)
        request = head.request(body or b"", method="GET" if body is None else "POST")
        try:
            return await exchange(self._target, request, Connection, self._spec.timeout_s)
        except ConnectFailed as failure:
            raise self._unreachable(failure) from failure

    def _unreachable(self, failure: ConnectFailed) -> ConfigError:
        text = str(failure)
        if "CERTIFICATE" in text:
            hint = "--ca-file PEM names certificates to trust"
        elif self._target.tls is None and any(word in text for word in _NOT_HTTP):
            hint = "does it speak https:// there?"
        else:
            hint = "is the server running? headrace serve MODEL starts one on port 8000"
        return ConfigError(f"{self._target.url}: {text}", hint=hint)

    async def _refusal(self, answer: Answer, what: str) -> HeadraceError:
        """The error for an answer that is not 200, with the server's own words."""
        text = f"{what} was answered {answer.status}: {error_text(answer.body)}"
        unknown = answer.status == 404 or "unknown model" in text.lower()
        if unknown:
            return ModelNotFound(
                f"model {self._spec.model!r}: {text}", hint=await self._model_hint()
            )
        if answer.status in {401, 403}:
            return InvalidRequest(text, hint="--header 'Authorization: Bearer ...'")
        if answer.status in {429, 503, 504}:
            return CapacityError(text, hint="the model may still be loading; try again")
        if answer.status < 500:
            return InvalidRequest(
                text, hint="give bodies this model accepts with --input FILE.json (or --shape)"
            )
        return InferenceFailed(text, hint="see the server's log")

    async def only_model(self) -> str:
        """The one model this server has.

        Raises:
            ConfigError: it has none, or several, or does not say.
        """
        names = await self._model_names()
        if len(names) == 1:
            return names[0]
        raise ConfigError(
            f"which model? {self._target.url} has {len(names) or 'no list of its models'}",
            hint=f"--model {'|'.join(names[:10]) or 'NAME'}",
        )

    async def _model_hint(self) -> str:
        names = await self._model_names()
        if names:
            return f"it has {', '.join(names[:10])}" + (" ..." if len(names) > 10 else "")
        return "give the name it is served under with --model"

    async def _model_names(self) -> list[str]:
        try:
            answer = await self._ask("/v2/repository/index", b"{}")
            rows: list[dict[str, Any]] = msgspec.json.decode(answer.body)
            return sorted({str(row["name"]) for row in rows})
        except (HeadraceError, msgspec.DecodeError, KeyError, TypeError):
            return []
