"""What every answer of the REST application has in common: HEAD, and errors in their shape."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.errors import detached
from headrace.frontends.status import (
    http_status,
    openai_body,
    openai_error_body,
    retry_after_header,
    v2_body,
    v2_error_body,
)
from headrace.telemetry.logs import log_failure


class Envelope:
    """Takes the body off answers to HEAD, and turns the unforeseen into a 500 and a log line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        head = scope["method"] == "HEAD"

        async def forward(message: Message) -> None:
            nonlocal started
            started = True
            if head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, forward)
        except Exception as error:
            log_failure(error)
            if started:
                raise
            await error_response(Request(scope), error)(scope, receive, forward)


def error_response(request: Request, error: Exception) -> Response:
    """The status, shape and ``Retry-After`` that belong to the error and the route."""
    error = detached(error)
    retry_after = retry_after_header(error)
    body = openai_error_body(error) if _is_openai(request) else v2_error_body(error)
    return Response(
        body,
        http_status(error),
        {"retry-after": retry_after} if retry_after else None,
        "application/json",
    )


def http_error_response(request: Request, error: Exception) -> Response:
    """What the routing itself refuses, with what would have been right."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = allowed = ", ".join(sorted(headers.get("Allow", "").split(", ")))
        message, code = f"{request.method} is not allowed on {path}", "method_not_allowed"
        hint = f"use {allowed}"
    elif error.status_code == 404:
        message, code = f"there is no route {path}", "route_not_found"
        hint = f"the routes are {', '.join(_paths(request.app))}"
    else:
        message, code, hint = error.detail, "bad_request", ""
    if _is_openai(request):
        body = openai_body(f"{message} ({hint})" if hint else message, code)
    else:
        body = v2_body(message, code, hint=hint)
    return Response(body, error.status_code, headers, "application/json")


def _is_openai(request: Request) -> bool:
    path = request.url.path
    predicts = request.method == "POST" and path.endswith(":predict")  # KServe's V1 is V2's kin
    return path.startswith("/v1/") and not predicts


def _paths(app: Starlette) -> list[str]:
    """Every path once; the one for a version is told by the one without."""
    paths = {route.path.replace(":path", "") for route in app.routes if isinstance(route, Route)}
    return sorted(path for path in paths if "{version}" not in path and path != "/v2/")
