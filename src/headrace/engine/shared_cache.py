"""Answers kept where several servers find them: Redis or Valkey.

Law: it may be slow, gone, or full of nonsense, and no request is worse for it than by the time of
one short look. What cannot be read counts as not there; after a few failures in a row it is
left alone for a while.

A value is a mark with the version of the format, an HMAC-SHA256 of its key and the rest, and
MessagePack of names, datatypes, shapes and bytes. Nothing is ever unpickled. So those who can write
to the shared place, but do not have the servers' key, cannot choose an answer, nor move one to
another request. What was not written with our key, or is not what the model could have answered,
counts as not there.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.config import SharedCacheConfig
from headrace.errors import ConfigError, MissingExtra
from headrace.types import DTYPE_OF, InferenceResponse, Tensor, Usage

_LOG = logging.getLogger("headrace.engine")

_MARK = b"hrc2"
_SUM_BYTES = 32

_KEY_BYTES_MIN = 16
_KEY_BYTES_MAX = 4096

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
    parameters: dict[str, bool | int | float | str] | None = None
    tokens: int | None = None


class SharedTier:
    """One for an engine. On the event loop.

    Args:
        told: called with "hit", "miss", "refused" (what is there is not ours) or
            "error" after every look.

    Raises:
        MissingExtra: the package ``redis`` is not installed.
        ConfigError: the URL is none, or there is no key to authenticate answers with.
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
        self._secret = _secret(config, self._client.connection_pool.connection_kwargs)
        self._failures = 0
        self._rests_until_ns = 0
        self._writes: set[asyncio.Task[None]] = set()

    async def get(
        self, key: bytes, fits: Callable[[InferenceResponse], bool]
    ) -> InferenceResponse | None:
        """What is kept there and ``fits``; None: nothing, or it does not answer."""
        if self._now_ns() < self._rests_until_ns:
            return None
        try:
            # No more of it than we would write: others may have written a gigabyte.
            value = await self._client.getrange(self._name(key), 0, self._config.max_value_bytes)
        except Exception as error:  # noqa: BLE001 - whatever is wrong there is not wrong here
            self._failed(error)
            return None
        self._failures = 0
        response = decoded(value, self._secret, key) if value else None
        if response is not None and fits(response):
            self._told("hit")
            return response
        self._told("refused" if value else "miss")
        return None

    def put(self, key: bytes, response: InferenceResponse, ttl_ns: int) -> None:
        """Keeps it there some time soon; ``ttl_ns`` 0: as long as is usual."""
        if self._now_ns() < self._rests_until_ns or len(self._writes) >= _WRITES_MAX:
            return
        value = encoded(response, self._secret, key)
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


def _secret(config: SharedCacheConfig, connection: dict[str, Any]) -> bytes:
    """The key that answers are authenticated with: from a file, or made of Redis' password.

    A socket file without either is protected by its own permissions.
    """
    if config.key_file:
        return _read_key(Path(config.key_file))
    password = str(connection.get("password") or "")
    if not password and "path" not in connection:
        raise ConfigError(
            "server.shared_cache.url has no password, so any program that reaches it could choose "
            "what this server answers",
            hint="set server.shared_cache.key_file to a file with at least 16 random bytes, the "
            "same for all servers: head -c 32 /dev/urandom > KEY; or use a Redis with a password",
            field="server.shared_cache.key_file",
        )
    return hashlib.sha256(b"headrace shared cache\0" + password.encode()).digest()


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            key = file.read(_KEY_BYTES_MAX).strip()
    except OSError as error:
        raise ConfigError(
            f"cannot read server.shared_cache.key_file: {error.strerror}",
            hint="check its name and that the server's user may read it",
            field="server.shared_cache.key_file",
        ) from None
    if len(key) < _KEY_BYTES_MIN:
        raise ConfigError(
            f"server.shared_cache.key_file holds {len(key)} bytes, expected at least "
            f"{_KEY_BYTES_MIN}",
            hint="head -c 32 /dev/urandom > KEY",
            field="server.shared_cache.key_file",
        )
    return key


def encoded(response: InferenceResponse, secret: bytes, key: bytes) -> bytes:
    """The value of a response, for this key alone."""
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
    return b"".join((_MARK, _sum(secret, key, body), body))


def decoded(value: bytes, secret: bytes, key: bytes) -> InferenceResponse | None:
    """The response of a value; None: it is not one of ours for this key, or it is damaged."""
    body = value[len(_MARK) + _SUM_BYTES :]
    told = value[len(_MARK) : len(_MARK) + _SUM_BYTES]
    if value[: len(_MARK)] != _MARK or not hmac.compare_digest(told, _sum(secret, key, body)):
        return None
    try:
        kept = msgspec.msgpack.decode(body, type=_Value)
        outputs = [_tensor(each) for each in kept.outputs]
    except (msgspec.MsgspecError, ValueError, KeyError):
        return None
    usage = None if kept.tokens is None else Usage(kept.tokens)
    return InferenceResponse(kept.model, kept.version, "", outputs, kept.parameters, usage)


def _tensor(kept: _Kept) -> Tensor:
    """Raises ValueError or KeyError where data, datatype and shape do not belong together."""
    if isinstance(kept.data, list) != (kept.datatype == "BYTES") or min(kept.shape, default=0) < 0:
        raise ValueError(kept.datatype)
    if isinstance(kept.data, list):
        data = np.empty(len(kept.data), dtype=object)
        data[:] = kept.data
    else:
        data = np.frombuffer(kept.data, DTYPE_OF[kept.datatype]).copy()
    return Tensor(kept.name, kept.datatype, kept.shape, data.reshape(kept.shape))


def _sum(secret: bytes, key: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, key + body, "sha256")
