"""Answers kept where several servers find them: Redis or Valkey.

Law: it may be slow, gone, or full of nonsense, and no request is worse for it than by the time of
one short look. What cannot be read counts as not there; after a few failures in a row it is
left alone for a while.

A value is ours alone: a mark with the version of the format, a checksum of the rest, and
MessagePack of names, datatypes, shapes and bytes. Nothing is ever unpickled.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from headrace.config import SharedCacheConfig
from headrace.errors import ConfigError, MissingExtra
from headrace.types import DTYPE_OF, InferenceResponse, Tensor, Usage

_LOG = logging.getLogger("headrace.engine")

_MARK = b"hrc1"
_SUM_BYTES = 16

_FAILURES_MAX = 3
_REST_NS = 5_000_000_000
"""After so many failures in a row it is not asked for so long."""

_WRITES_MAX = 256
"""Writes under way; while there are more, further answers are not shared."""


class _Kept(msgspec.Struct, array_like=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | list[bytes]


class _Value(msgspec.Struct, array_like=True):
    model: str
    version: str
    outputs: list[_Kept]
    parameters: dict[str, Any] | None = None
    tokens: int | None = None


class SharedTier:
    """One for an engine. On the event loop.

    Args:
        told: called with "hit", "miss" or "error" after every look.

    Raises:
        MissingExtra: the package ``redis`` is not installed.
        ConfigError: the URL is none.
    """

    def __init__(
        self,
        config: SharedCacheConfig,
        now_ns: Callable[[], int],
        told: Callable[[str], None] = lambda _how: None,
    ) -> None:
        self._config = config
        self._now_ns = now_ns
        self._told = told
        self._client = _client(config)
        self._failures = 0
        self._rests_until_ns = 0
        self._writes: set[asyncio.Task[None]] = set()

    async def get(self, key: bytes) -> InferenceResponse | None:
        """What is kept there; None: nothing, or it does not answer."""
        if self._now_ns() < self._rests_until_ns:
            return None
        try:
            value = await self._client.get(self._name(key))
        except Exception as error:  # noqa: BLE001 - whatever is wrong there is not wrong here
            self._failed(error)
            return None
        self._failures = 0
        response = None if value is None else decoded(value)
        self._told("miss" if response is None else "hit")
        return response

    def put(self, key: bytes, response: InferenceResponse, ttl_ns: int) -> None:
        """Keeps it there some time soon; ``ttl_ns`` 0: as long as is usual."""
        if self._now_ns() < self._rests_until_ns or len(self._writes) >= _WRITES_MAX:
            return
        value = encoded(response)
        if len(value) > self._config.max_value_bytes:
            return
        ttl_ms = max(1, int(ttl_ns / 1e6 if ttl_ns else self._config.ttl_s * 1e3))
        task = asyncio.get_running_loop().create_task(self._write(key, value, ttl_ms))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Ends the connections; what is being written is waited for briefly."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=self._config.timeout_s)
        await self._client.aclose(close_connection_pool=True)

    async def _write(self, key: bytes, value: bytes, ttl_ms: int) -> None:
        try:
            await self._client.set(self._name(key), value, px=ttl_ms)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error)

    def _name(self, key: bytes) -> str:
        return self._config.prefix + key.hex()

    def _failed(self, error: Exception) -> None:
        self._told("error")
        self._failures += 1
        if self._failures >= _FAILURES_MAX:
            self._failures = 0
            self._rests_until_ns = self._now_ns() + _REST_NS
            _LOG.warning(
                "the shared cache does not answer (%s) and is left alone for %d s",
                str(error) or type(error).__name__,
                _REST_NS // 1_000_000_000,
            )


def _client(config: SharedCacheConfig) -> Any:
    try:
        from redis.asyncio import Redis  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtra("server.shared_cache.url", extra="redis", package="redis") from None
    try:
        return Redis.from_url(
            config.url,
            # Its own: a look that was cut off from outside would leave its connection open.
            socket_connect_timeout=config.timeout_s,
            socket_timeout=config.timeout_s,
            retry=None,
        )
    except ValueError as error:
        raise ConfigError(
            f"server.shared_cache.url: {error}",
            hint="redis://host:6379/0, rediss://host:6379/0 or unix:///path/to/socket",
        ) from None


def encoded(response: InferenceResponse) -> bytes:
    """The value of a response."""
    outputs = [
        _Kept(
            tensor.name,
            tensor.datatype,
            tuple(tensor.shape),
            [bytes(element) for element in tensor.data.flat]
            if tensor.data.dtype.kind == "O"
            else tensor.data.tobytes(),
        )
        for tensor in response.outputs
    ]
    tokens = None if response.usage is None else response.usage.tokens
    body = msgspec.msgpack.encode(
        _Value(response.model_name, response.model_version, outputs, response.parameters, tokens)
    )
    return b"".join((_MARK, _sum(body), body))


def decoded(value: bytes) -> InferenceResponse | None:
    """The response of a value; None: it is not one of this version, or it is damaged."""
    body = value[len(_MARK) + _SUM_BYTES :]
    if value[: len(_MARK)] != _MARK or value[len(_MARK) : len(_MARK) + _SUM_BYTES] != _sum(body):
        return None
    try:
        kept = msgspec.msgpack.decode(body, type=_Value)
        outputs = [_tensor(each) for each in kept.outputs]
    except (msgspec.MsgspecError, ValueError, KeyError):
        return None
    usage = None if kept.tokens is None else Usage(kept.tokens)
    return InferenceResponse(kept.model, kept.version, "", outputs, kept.parameters, usage)


def _tensor(kept: _Kept) -> Tensor:
    if isinstance(kept.data, list):
        data = np.empty(len(kept.data), dtype=object)
        data[:] = kept.data
    else:
        data = np.frombuffer(kept.data, DTYPE_OF[kept.datatype]).copy()
    return Tensor(kept.name, kept.datatype, kept.shape, data.reshape(kept.shape))


def _sum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_SUM_BYTES).digest()
