"""Routes that control a running server: repository, statistics, trace and log settings.

Paths and bodies as in Triton's extensions; ``load`` and ``unload`` answer with KServe's body,
of which Triton's clients read the status alone. Every route that changes something is behind
:class:`SiteGuard`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.errors import InvalidRequest, Unsupported
from headrace.frontends.asgi_bridge import PEER
from headrace.frontends.codecs import json_guard
from headrace.frontends.control import Control, Parameter
from headrace.frontends.peer import Address, Peer
from headrace.frontends.site_guard import SiteGuard

_FILE = "file:"

_json = msgspec.json.Encoder().encode
_object: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])

Handler = Callable[[Request], Awaitable[Response]]


class _IndexRequest(msgspec.Struct):
    ready: bool = False


class _ControlRequest(msgspec.Struct):
    parameters: dict[str, Any] = {}


class _RegionRequest(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


class _Alias(msgspec.Struct):
    alias: str = "stable"


class _Promote(msgspec.Struct):
    version: str
    alias: str = "stable"


class _Pin(msgspec.Struct):
    pinned: bool = True


_alias_decoder = msgspec.json.Decoder(_Alias)
_promote_decoder = msgspec.json.Decoder(_Promote)
_pin_decoder = msgspec.json.Decoder(_Pin)
_region_decoder = msgspec.json.Decoder(_RegionRequest)
_index_decoder = msgspec.json.Decoder(_IndexRequest)
_control_decoder = msgspec.json.Decoder(_ControlRequest)


class ControlRoutes:
    """The handlers; one method for each kind of route."""

    def __init__(self, control: Control, guard: SiteGuard) -> None:
        self._control = control
        self._guard = guard

    def routes(self) -> list[Route]:
        """The table."""
        model = "/v2/models/{model}"
        gets: dict[str, Handler] = {
            "/v2/models/stats": self.statistics,
            model + "/stats": self.statistics,
            model + "/versions/{version}/stats": self.statistics,
            model + "/history": self.history,
            "/v2/repository/models": self.overview,
        }
        # Triton's client sends a POST for these, but they only read.
        posted_reads: dict[str, Handler] = {
            "/v2/repository/index": self.index,
            "/v2/repository/{repository}/index": self.index,
        }
        posts: dict[str, Handler] = {
            "/v2/repository/models/{model}/load": self.load,
            "/v2/repository/models/{model}/unload": self.unload,
            "/v2/repository/models/{model}/promote": self.promote,
            "/v2/repository/models/{model}/rollback": self.rollback,
            "/v2/repository/models/{model}/pin": self.pin,
            # A repository by name: Triton's path has room for one, and its server has none.
            "/v2/repository/{repository}/models/{model}/load": self.load,
            "/v2/repository/{repository}/models/{model}/unload": self.unload,
        }
        shared = "/v2/systemsharedmemory"
        gets[shared + "/status"] = gets[shared + "/region/{region}/status"] = self.regions
        posts[shared + "/region/{region}/register"] = self.register
        posts[shared + "/unregister"] = self.unregister
        posts[shared + "/region/{region}/unregister"] = self.unregister
        cuda = "/v2/cudasharedmemory"
        gets[cuda + "/status"] = gets[cuda + "/region/{region}/status"] = self.cuda_regions
        posts[cuda + "/region/{region}/register"] = self.register_cuda
        posts[cuda + "/unregister"] = self.unregister_cuda
        posts[cuda + "/region/{region}/unregister"] = self.unregister_cuda
        settings: dict[str, Handler] = {
            "/v2/trace/setting": self.trace_setting,
            model + "/trace/setting": self.trace_setting,
            "/v2/logging": self.log_settings,
        }
        return [
            *[Route(path, handler, methods=["GET"]) for path, handler in gets.items()],
            *[Route(path, handler, methods=["POST"]) for path, handler in posted_reads.items()],
            *[Route(path, self._guarded(f), methods=["POST"]) for path, f in posts.items()],
            *[
                Route(path, self._guarded(f), methods=["GET", "POST"])
                for path, f in settings.items()
            ],
        ]

    def _guarded(self, handler: Handler) -> Handler:
        @wraps(handler)
        async def checked(request: Request) -> Response:
            if request.method == "POST":
                self._guard.check(
                    request.headers.getlist,
                    request.headers.get("host", ""),
                    on_loopback=_peer(request).on_loopback,
                )
                client = request.client
                self._guard.note(request.url.path, None if client is None else client.host)
            return await handler(request)

        return checked

    async def index(self, request: Request) -> Response:
        """Every version with its state; ``{"ready": true}`` leaves only those that serve."""
        body = await request.body()
        wanted = json_guard.decode(_index_decoder, body, "request body") if body else None
        ready_only = wanted is not None and wanted.ready
        return _reply(
            [
                {
                    "name": status.name,
                    "version": status.version,
                    "state": status.state,
                    "reason": status.reason,
                }
                for status in self._control.index(ready_only=ready_only)
            ]
        )

    async def load(self, request: Request) -> Response:
        """``{"parameters": {"config": JSON text, "file:<path>": base64}}``, all optional."""
        name = request.path_params["model"]
        await self._control.load(name, _load_parameters(await _control_request(request)))
        return _reply({"name": name, "load": True})

    async def unload(self, request: Request) -> Response:
        """``{"parameters": {"unload_dependents": bool}}``, optional."""
        name = request.path_params["model"]
        parameters = await _control_request(request)
        dependents = parameters.get("unload_dependents", False)
        if not isinstance(dependents, bool):
            raise InvalidRequest("parameter 'unload_dependents' must be a boolean")
        await self._control.unload(name, dependents=dependents)
        return _reply({"name": name, "unload": True})

    async def overview(self, _: Request) -> Response:
        """``[{"name", "version", "state", "aliases", "size_bytes", ...}]``."""
        return _reply(self._control.overview())

    async def history(self, request: Request) -> Response:
        """``[{"at", "version", "event", "state", "phase", "reason", "lasted_s"}]``."""
        return _reply(self._control.history(request.path_params["model"]))

    async def promote(self, request: Request) -> Response:
        """``{"version", "alias"?}``; answers with the aliases after that."""
        body = await request.body()
        asked = json_guard.decode(_promote_decoder, body, "request body")
        name = request.path_params["model"]
        aliases = await self._control.promote(name, asked.version, asked.alias)
        return _reply({"name": name, "aliases": aliases})

    async def rollback(self, request: Request) -> Response:
        """``{"alias"?}``; the same."""
        body = await request.body()
        asked = json_guard.decode(_alias_decoder, body, "request body") if body else _Alias()
        name = request.path_params["model"]
        aliases = await self._control.rollback(name, asked.alias)
        return _reply({"name": name, "aliases": aliases})

    async def pin(self, request: Request) -> Response:
        """``{"pinned"?}``."""
        body = await request.body()
        asked = json_guard.decode(_pin_decoder, body, "request body") if body else _Pin()
        name = request.path_params["model"]
        await self._control.pin(name, pinned=asked.pinned)
        return _reply({"name": name, "pinned": asked.pinned})

    async def statistics(self, request: Request) -> Response:
        """``{"model_stats": [...]}``."""
        target = request.path_params
        return _reply(
            await self._control.statistics(target.get("model", ""), target.get("version", ""))
        )

    async def trace_setting(self, request: Request) -> Response:
        """GET: the settings; POST: changes them first."""
        update = await _settings(request)
        return _reply(
            await self._control.trace_setting(request.path_params.get("model", ""), update)
        )

    async def log_settings(self, request: Request) -> Response:
        """GET: the settings; POST: changes them first."""
        return _reply(await self._control.log_settings(await _settings(request)))

    async def regions(self, request: Request) -> Response:
        """``[{"name", "key", "offset", "byte_size"}]``."""
        return _reply(
            self._control.shared_memory(_peer(request), request.path_params.get("region", ""))
        )

    async def register(self, request: Request) -> Response:
        """``{"key", "offset"?, "byte_size"}``."""
        body = await request.body()
        asked = json_guard.decode(_region_decoder, body, "request body")
        await self._control.register_shared_memory(
            _peer(request),
            request.path_params["region"],
            key=asked.key,
            offset=asked.offset,
            byte_size=asked.byte_size,
        )
        return Response(b"", 200)

    async def unregister(self, request: Request) -> Response:
        """One region, or all."""
        await self._control.unregister_shared_memory(
            _peer(request), request.path_params.get("region", "")
        )
        return Response(b"", 200)

    async def cuda_regions(self, _: Request) -> Response:
        """None: not an error, because clients ask every server."""
        return _reply([])

    async def register_cuda(self, request: Request) -> Response:
        """Not to be had."""
        raise Unsupported(
            "failed to register CUDA shared memory region: "
            f"'{request.path_params['region']}': this server has no GPU runtime",
            hint="use system shared memory",
        )

    async def unregister_cuda(self, _: Request) -> Response:
        """There is none."""
        return Response(b"", 200)


def _peer(request: Request) -> Peer:
    found = request.scope.get(PEER)
    if isinstance(found, Peer):
        return found
    server = request.scope.get("server")
    return Peer(local=Address(*server) if server else None)


async def _settings(request: Request) -> dict[str, Any] | None:
    if request.method != "POST":
        return None
    body = await request.body()
    return json_guard.decode(_object, body, "request body") if body else {}


async def _control_request(request: Request) -> dict[str, Any]:
    body = await request.body()
    if not body:
        return {}
    return json_guard.decode(_control_decoder, body, "request body").parameters


def _load_parameters(sent: dict[str, Any]) -> dict[str, Parameter]:
    parameters: dict[str, Parameter] = {}
    for name, value in sent.items():
        if name.startswith(_FILE):
            parameters[name] = _file(name, value)
        elif name != "config":
            raise InvalidRequest(
                f"unrecognized load parameter '{name}'",
                hint="the parameters are 'config' and 'file:<path>'",
            )
        elif isinstance(value, str):
            parameters[name] = value
        elif isinstance(value, dict):  # people write it as it reads best
            parameters[name] = _json(value).decode()
        else:
            raise InvalidRequest("parameter 'config' must be a string of JSON")
    return parameters


def _file(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidRequest(f"parameter '{name}' must be a string of base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"parameter '{name}' is not base64: {error}") from None


def _reply(body: Any) -> Response:
    return Response(_json(body), 200, media_type="application/json")
