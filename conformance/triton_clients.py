"""tritonclient's four clients behind one face, so that a check is written once."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from tritonclient.utils import np_to_triton_dtype

from conformance.servers import Server

KINDS = {
    "tritonclient.http": ("tritonclient.http", "http"),
    "tritonclient.http.aio": ("tritonclient.http.aio", "http"),
    "tritonclient.grpc": ("tritonclient.grpc", "grpc"),
    "tritonclient.grpc.aio": ("tritonclient.grpc.aio", "grpc"),
}
"""Name -> module, and over which protocol it speaks."""


class Client:
    """One client. Its methods are the library's own; coroutines are run to their end."""

    def __init__(self, kind: str, server: Server, runner: asyncio.Runner) -> None:
        module, self.protocol = KINDS[kind]
        self.module: Any = importlib.import_module(module)
        self.is_async = kind.endswith(".aio")
        self._runner = runner
        address = server.http_address if self.protocol == "http" else server.grpc_address
        self._client = self._made(address)

    def _made(self, address: str) -> Any:
        make = self.module.InferenceServerClient
        if not self.is_async:
            return make(address)

        async def made() -> Any:
            return make(address)

        return self._runner.run(made())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self._runner.run(result) if inspect.iscoroutine(result) else result

        return call

    def asked(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A method whose answer is a message over gRPC: as JSON values over both."""
        extra = {"as_json": True} if self.protocol == "grpc" else {}
        return getattr(self, name)(*args, **kwargs, **extra)

    def tensor(self, name: str, array: np.ndarray, **how: Any) -> Any:
        """An input with its data; ``how`` goes to ``set_data_from_numpy``."""
        made = self.module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        made.set_data_from_numpy(array, **how)
        return made

    def output(self, name: str, **how: Any) -> Any:
        """A requested output."""
        return self.module.InferRequestedOutput(name, **how)

    def infer_arrays(self, model: str, arrays: Mapping[str, np.ndarray], **kwargs: Any) -> Any:
        """``infer`` with arrays by name; the library's result."""
        return self.infer(model, [self.tensor(*item) for item in arrays.items()], **kwargs)

    def stream(self, requests: list[dict[str, Any]]) -> list[Any]:
        """Sends these over one ModelStreamInfer; every answer, or the error in its place."""
        if self.is_async:
            return self._runner.run(self._stream_async(requests))  # type: ignore[no-any-return]
        answers: list[Any] = []
        self._client.start_stream(lambda result, error: answers.append(error or result))
        for request in requests:
            self._client.async_stream_infer(**request)
        self._client.stop_stream()
        return answers

    async def _stream_async(self, requests: list[dict[str, Any]]) -> list[Any]:
        async def sent() -> Any:
            for request in requests:
                yield request

        answers = self._client.stream_infer(sent())
        return [error or result async for result, error in answers]


@contextmanager
def connected(kind: str, server: Server) -> Iterator[Client]:
    """A client that is closed at the end."""
    with asyncio.Runner() as runner:
        client = Client(kind, server, runner)
        try:
            yield client
        finally:
            client.close()
