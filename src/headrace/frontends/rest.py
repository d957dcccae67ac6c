"""Everything over HTTP that is not hot: health, metadata, index, metrics, documentation.

An ASGI application (Starlette) behind the same port as the fast lane, which answers
``POST .../infer``, ``:predict`` and ``/v1/embeddings`` itself; those are routes here only so that
a wrong method gets its 405 and the documentation its entry. Bodies as in the Open Inference
Protocol with KServe's health objects, which Triton's clients (they read the status alone)
accept as well; ``/v1`` as in the OpenAI API.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.errors import CapacityError, HeadraceError, ModelNotFound, ModelNotReady, Unsupported
from headrace.frontends.codecs import json_guard
from headrace.frontends.control import Control
from headrace.frontends.docs_page import docs_page, landing_page
from headrace.frontends.envelope import Envelope, error_response, http_error_response
from headrace.frontends.openapi import EMBEDDING, DescribedModel, build_openapi
from headrace.frontends.rest_control import ControlRoutes
from headrace.frontends.site_guard import SiteGuard
from headrace.telemetry.exposition import CONTENT_TYPE
from headrace.types import ModelMetadata, ModelVersionStatus, TensorSpec

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)
"""V2 extensions by the names Triton gave them; exactly those that work."""

_json = msgspec.json.Encoder().encode


class EngineView(Protocol):
    """What this application may ask the engine. ``version`` "" is the one being served.

    ``metadata``, ``model_config`` and ``task_kind`` raise ModelNotFound or ModelNotReady.
    """

    def metadata(self, name: str, version: str = "") -> ModelMetadata:
        """The public signature."""
        ...

    def model_config(self, name: str, version: str = "") -> dict[str, Any]:
        """Triton's ModelConfig as JSON values."""
        ...

    def is_ready(self, name: str = "", version: str = "") -> bool:
        """One model, or all. May raise ModelNotFound."""
        ...

    def statuses(self) -> list[ModelVersionStatus]:
        """Every version known."""
        ...

    def task_kind(self, name: str, version: str = "") -> str:
        """``tensor``, ``text-embedding`` ..."""
        ...


class _IndexRequest(msgspec.Struct):
    ready: bool = False


_index_decoder = msgspec.json.Decoder(_IndexRequest)


class _Rest:
    """The handlers; one method for each kind of route."""

    def __init__(
        self,
        engine: EngineView,
        *,
        version: str,
        metrics: Callable[[], Awaitable[bytes]],
        is_live: Callable[[], bool],
        is_ready: Callable[[], bool],
        extensions: Sequence[str],
        controlled: bool,
        explain: Callable[[str, str], object] | None = None,
    ) -> None:
        self._engine = engine
        self._version = version
        self._metrics = metrics
        self._is_live = is_live
        self._is_ready = is_ready
        self._extensions = list(extensions)
        self._controlled = controlled
        self._explain = explain
        self._started_s = int(time.time())

    def routes(self) -> list[Route]:
        """The table. ``{model}`` under ``/v1`` may contain slashes, as names of hubs do."""
        model = "/v2/models/{model}"
        table: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self.landing,
            "/docs": self.docs,
            "/openapi.json": self.openapi,
            "/metrics": self.metrics,
            "/healthz": self.healthz,
            "/v1/models": self.openai_models,
            "/v1/models/{model:path}": self.openai_model,
            "/v2": self.server_metadata,
            "/v2/": self.server_metadata,
            "/v2/health/live": self.live,
            "/v2/health/ready": self.ready,
            "/v2/models": self.models,
        }
        for prefix in (model, model + "/versions/{version}"):
            table[prefix] = self.model_metadata
            table[prefix + "/ready"] = self.model_ready
            table[prefix + "/config"] = self.model_config
            if self._explain is not None:
                table[prefix + "/explain"] = self.model_explain
        routes = [Route(path, handler, methods=["GET"]) for path, handler in table.items()]
        # "/v1/models/{model:path}" must not swallow what comes before it.
        routes.sort(key=lambda route: "{model:path}" in route.path)
        posts = {
            "/v1/embeddings": self.not_here,
            "/v1/models/{model}:predict": self.not_here,
            model + "/infer": self.not_here,
            model + "/versions/{version}/infer": self.not_here,
            model + "/generate": self.not_here,
            model + "/versions/{version}/generate": self.not_here,
            model + "/generate_stream": self.not_here,
            model + "/versions/{version}/generate_stream": self.not_here,
            "/v2/repository/index": self.repository_index,
        }
        posted = [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
        return [*posted, *routes]

    # -- health ------------------------------------------------------------------------------

    async def healthz(self, _: Request) -> Response:
        """For whoever only wants to know whether the process answers."""
        live = self._is_live()
        return _reply({"status": "ok" if live else "stopping"}, 200 if live else 503)

    async def live(self, _: Request) -> Response:
        """``{"live": bool}``."""
        live = self._is_live()
        return _reply({"live": live}, 200 if live else 503)

    async def ready(self, _: Request) -> Response:
        """``{"ready": bool}``; while it is false, also which models are waited for."""
        if self._is_ready():
            return _reply({"ready": True})
        waited_for = [
            f"{status.name}/{status.version}: {status.state}"
            for status in self._engine.statuses()
            if status.state != "READY"
        ]
        return _reply({"ready": False, "waiting_for": waited_for}, 503)

    async def model_ready(self, request: Request) -> Response:
        """``{"name", "ready": true}``, else the error that says why not."""
        name, version = _target(request)
        if not self._engine.is_ready(name, version):
            self._engine.metadata(name, version)  # knows the reason and raises it
            raise ModelNotReady(f"model '{name}' is not ready", model=name)
        return _reply({"name": name, "ready": True})

    # -- metadata ----------------------------------------------------------------------------

    async def server_metadata(self, _: Request) -> Response:
        """Name, version, extensions."""
        return _reply(
            {"name": "headrace", "version": self._version, "extensions": self._extensions}
        )

    async def models(self, _: Request) -> Response:
        """KServe's list: names only."""
        return _reply({"models": sorted({status.name for status in self._engine.statuses()})})

    async def model_metadata(self, request: Request) -> Response:
        """The public signature."""
        return _reply(metadata_body(self._engine.metadata(*_target(request))))

    async def model_config(self, request: Request) -> Response:
        """Triton's ModelConfig."""
        return _reply(self._engine.model_config(*_target(request)))

    async def model_explain(self, request: Request) -> Response:
        """What the scheduler has learnt of the model; see ``headrace explain``."""
        assert self._explain is not None
        return _reply(self._explain(*_target(request)))

    async def repository_index(self, request: Request) -> Response:
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
                for status in self._engine.statuses()
                if status.state == "READY" or not ready_only
            ]
        )

    async def openai_models(self, _: Request) -> Response:
        """The models that ``/v1/embeddings`` can serve."""
        names = [m.metadata.name for m in self._described() if m.embeds]
        return _reply({"object": "list", "data": [self._openai_model(name) for name in names]})

    async def openai_model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["model"]
        if self._engine.task_kind(name) != EMBEDDING:
            raise ModelNotFound(
                f"model '{name}' has no OpenAI endpoint: it does not embed texts",
                hint=f"use POST /v2/models/{name}/infer",
                model=name,
            )
        return _reply(self._openai_model(name))

    def _openai_model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._started_s,
            "owned_by": "headrace",
        }

    # -- for people --------------------------------------------------------------------------

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text format."""
        return Response(await self._metrics(), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, _: Request) -> Response:
        """OpenAPI 3.1."""
        return _reply(self._document(self._described()))

    async def docs(self, _: Request) -> Response:
        """The same for people, with a form to try a model."""
        models = self._described()
        return docs_page(self._document(models), models)

    def _document(self, models: Sequence[DescribedModel]) -> dict[str, Any]:
        return build_openapi(models, version=self._version, control=self._controlled)

    async def landing(self, _: Request) -> Response:
        """What is served here."""
        statuses = self._engine.statuses()
        return landing_page(statuses, ready=self._is_ready(), version=self._version)

    async def not_here(self, request: Request) -> Response:
        """Reached only where this application runs without the fast lane in front of it."""
        raise Unsupported(
            f"{request.url.path} is not served by this application alone",
            hint="start the server with 'headrace serve'",
        )

    def _described(self) -> list[DescribedModel]:
        """Every model that serves, once each, sorted by name."""
        described = []
        for name in sorted({s.name for s in self._engine.statuses() if s.state == "READY"}):
            try:
                metadata, kind = self._engine.metadata(name), self._engine.task_kind(name)
            except (ModelNotFound, CapacityError):
                continue  # unloaded since
            described.append(DescribedModel(metadata, kind))
        return described


def create_app(
    engine: EngineView,
    *,
    version: str,
    metrics: Callable[[], Awaitable[bytes]],
    is_live: Callable[[], bool],
    is_ready: Callable[[], bool],
    extensions: Sequence[str] = EXTENSIONS,
    control: Control | None = None,
    explain: Callable[[str, str], object] | None = None,
    guard: SiteGuard | None = None,
) -> Starlette:
    """The application.

    Args:
        engine: see :class:`EngineView`.
        version: of headrace.
        metrics: the page of ``/metrics``, all workers added up.
        is_live, is_ready: the truth behind the health routes; readiness is false while the
            server drains.
        extensions: advertised by ``GET /v2``.
        control: what its routes control; None: there are none, but for the index.
        explain: what was learnt of a model (name, version); None: there is no such route.
        guard: checks what changes something; None: one that knows no hosts but loopback's.
    """
    rest = _Rest(
        engine,
        version=version,
        metrics=metrics,
        is_live=is_live,
        is_ready=is_ready,
        extensions=extensions,
        controlled=control is not None,
        explain=explain,
    )
    # First: "/v2/models/stats" is no model, and the control's index knows more models.
    controls = [] if control is None else ControlRoutes(control, guard or SiteGuard()).routes()
    app = Starlette(
        routes=[*controls, *rest.routes()],
        middleware=[Middleware(Envelope)],
        exception_handlers={
            HeadraceError: error_response,
            HTTPException: http_error_response,
        },
    )
    # A redirect would be built from the Host header, which is the caller's word.
    app.router.redirect_slashes = False
    return app


def metadata_body(metadata: ModelMetadata) -> dict[str, Any]:
    """``GET /v2/models/{model}`` as JSON values; ``optional`` only where it is true."""
    body: dict[str, Any] = {
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": [_tensor_body(spec) for spec in metadata.inputs],
        "outputs": [_tensor_body(spec) for spec in metadata.outputs],
    }
    if metadata.properties:
        body["properties"] = metadata.properties
    return body


def _tensor_body(spec: TensorSpec) -> dict[str, Any]:
    body: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    if spec.optional:
        body["optional"] = True
    return body


def _target(request: Request) -> tuple[str, str]:
    return request.path_params["model"], request.path_params.get("version", "")


def _reply(body: object, status: int = 200) -> Response:
    return Response(_json(body), status, media_type="application/json")
