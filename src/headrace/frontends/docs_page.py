"""Two pages for people: ``/`` and ``/docs``. Nothing is fetched from anywhere else.

Both are complete without JavaScript; it only drives the form. Everything that came from a
model or an operator is escaped, and the content security policy allows no script but ours,
by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.responses import HTMLResponse

from headrace.frontends.examples import EMBEDDING_TEXTS, IMAGE_TASKS, infer_example
from headrace.frontends.openapi import DescribedModel
from headrace.types import ModelVersionStatus

_STATIC = files("headrace.frontends").joinpath("static")
_CSS = _STATIC.joinpath("page.css").read_text(encoding="utf-8")
_SCRIPT = _STATIC.joinpath("docs.js").read_text(encoding="utf-8")

_LINKS = (("/", "Models"), ("/docs", "API"), ("/openapi.json", "OpenAPI"), ("/metrics", "Metrics"))


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src {_hash(_CSS)}; script-src {_hash(_SCRIPT)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


def landing_page(
    statuses: Sequence[ModelVersionStatus], *, ready: bool, version: str
) -> HTMLResponse:
    """Which models are here and in what state."""
    state = '<span class="good">ready</span>' if ready else '<span class="bad">not ready</span>'
    rows = "".join(_status_row(status) for status in statuses)
    table = (
        "<table><caption>Every version in the repository</caption><thead><tr>"
        '<th scope="col">Model</th><th scope="col">Version</th><th scope="col">State</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
        if statuses
        else "<p>There is no model here yet.</p>"
    )
    return _page(
        "headrace",
        f'<p>The server is {state}. <a href="/docs">Try a model</a> in the browser.</p>'
        f"<h2>Models</h2>{table}",
        version=version,
    )


def docs_page(document: dict[str, Any], models: Sequence[DescribedModel]) -> HTMLResponse:
    """The OpenAPI ``document`` to read, and a form that sends an example to a model."""
    sections = "".join(_section(document, tag) for tag in document["tags"])
    schemas = "".join(
        f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<pre>{_pretty(schema)}</pre></details>"
        for name, schema in document["components"]["schemas"].items()
    )
    return _page(
        "headrace API",
        f"<p>{escape(document['info']['description'])}</p>"
        f"<h2>Try it</h2>{_form(models)}{sections}<h2>Schemas</h2>{schemas}",
        version=document["info"]["version"],
        script=_SCRIPT if models else "",
    )


def _page(title: str, content: str, *, version: str, script: str = "") -> HTMLResponse:
    links = "".join(f'<a href="{path}">{text}</a>' for path, text in _LINKS)
    end = f"<script>{script}</script>" if script else ""
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{_CSS}</style></head><body><header><h1>{escape(title)}</h1>"
        f'<p class="soft">version {escape(version)}</p>'
        f'<nav aria-label="Pages">{links}</nav></header>'
        f"<main>{content}</main>{end}</body></html>",
        headers=_HEADERS,
    )


def _status_row(status: ModelVersionStatus) -> str:
    ready = status.state == "READY"
    name, version = escape(status.name), escape(status.version)
    shown = f'<a href="/v2/models/{_quoted(status.name)}">{name}</a>' if ready else name
    reason = f'<br><span class="soft">{escape(status.reason)}</span>' if status.reason else ""
    return (
        f"<tr><td>{shown}</td><td>{version}</td>"
        f'<td><span class="{"good" if ready else "bad"}">{escape(status.state)}</span>'
        f"{reason}</td></tr>"
    )


def _section(document: dict[str, Any], tag: dict[str, str]) -> str:
    operations = "".join(
        _operation(path, method, item[method], item.get("parameters", ()))
        for path, item in document["paths"].items()
        for method in ("get", "post")
        if method in item and tag["name"] in item[method]["tags"]
    )
    title = escape(tag["name"].capitalize())
    return f'<h2>{title}</h2><p class="soft">{escape(tag["description"])}</p>{operations}'


def _operation(
    path: str, method: str, operation: dict[str, Any], parameters: Sequence[dict[str, Any]]
) -> str:
    parts = [f"<p>{escape(operation.get('description', operation['summary']))}</p>"]
    if parameters:
        parts.append("<h3>Parameters</h3><ul>" + "".join(map(_parameter, parameters)) + "</ul>")
    if "requestBody" in operation:
        parts.append("<h3>Body</h3><ul>" + "".join(_bodies(operation["requestBody"])) + "</ul>")
    answers = "".join(
        f"<li><code>{status}</code> {escape(answer['description'])}<ul>"
        f"{''.join(_bodies(answer))}</ul></li>"
        for status, answer in operation["responses"].items()
    )
    return (
        f'<details><summary><span class="method">{method.upper()}</span> '
        f'<code>{escape(path)}</code> <span class="soft">{escape(operation["summary"])}</span>'
        f"</summary>{''.join(parts)}<h3>Answers</h3><ul>{answers}</ul></details>"
    )


def _parameter(parameter: dict[str, Any]) -> str:
    examples = parameter["schema"].get("examples", ())
    known = f": {', '.join(map(escape, examples))}" if examples else ""
    text = escape(parameter.get("description", ""))
    return f"<li><code>{escape(parameter['name'])}</code> ({parameter['in']}){known} {text}</li>"


def _bodies(message: dict[str, Any]) -> Iterable[str]:
    for media, content in message.get("content", {}).items():
        schema = content["schema"]
        names = [choice["$ref"] for choice in schema.get("anyOf", [schema]) if "$ref" in choice]
        links = ", ".join(
            f'<a href="#schema-{name}"><code>{name}</code></a>'
            for name in (pointer.rpartition("/")[2] for pointer in names)
        )
        text = escape(schema.get("description", ""))
        yield f"<li><code>{escape(media)}</code> {links}{text}</li>"


def _form(models: Sequence[DescribedModel]) -> str:
    if not models:
        return "<p>No model is ready, so there is nothing to send.</p>"
    examples = _form_examples(models)
    options = "".join(
        f'<option value="{index}">{escape(example["label"])}</option>'
        for index, example in enumerate(examples)
    )
    # "<" is escaped so that no value can end the element.
    data = msgspec.json.encode(examples).decode().replace("<", "\\u003c")
    return (
        f'<script type="application/json" id="examples">{data}</script>'
        '<form id="try"><label for="example">Request</label>'
        f'<select id="example" name="example">{options}</select>'
        '<div id="picture" hidden><label for="file">Picture of your own</label>'
        '<input type="file" id="file" accept="image/*"></div>'
        '<label for="body">Body</label>'
        '<textarea id="body" name="body" spellcheck="false"></textarea>'
        '<p class="soft">In place of long data the form accepts <code>{"fill": value}</code> '
        "and writes it out before it sends.</p>"
        '<button type="submit">Send</button> <output id="outcome" for="body"></output></form>'
        '<pre id="answer" aria-label="Answer" tabindex="0"></pre>'
        '<details><summary>The same with curl</summary><pre id="curl" tabindex="0"></pre>'
        "</details><noscript><p>The form needs JavaScript; everything below does not.</p>"
        "</noscript>"
    )


def _form_examples(models: Sequence[DescribedModel]) -> list[dict[str, Any]]:
    examples: list[dict[str, Any]] = []
    for model in models:
        name = model.metadata.name
        if model.embeds:
            examples.append(
                {
                    "label": f"{name}: embeddings",
                    "path": "/v1/embeddings",
                    "body": {"model": name, "input": EMBEDDING_TEXTS},
                    "picture": False,
                }
            )
        examples.append(
            {
                "label": f"{name}: infer",
                "path": f"/v2/models/{_quoted(name)}/infer",
                "body": infer_example(model.metadata, model.task_kind),
                "picture": model.task_kind in IMAGE_TASKS,
            }
        )
    return examples


def _quoted(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def _pretty(schema: dict[str, Any]) -> str:
    return escape(msgspec.json.format(msgspec.json.encode(schema), indent=2).decode())
