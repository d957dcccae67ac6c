"""What a person can do with the demo's server: lines that work when they are copied."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from headrace.cli.demo_model import Obtained

_OPENAI = """\
from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="none")
answer = client.embeddings.create(model="{name}", input=["good morning"])
print(len(answer.data[0].embedding))"""

_TRITONCLIENT = """\
import numpy as np
import tritonclient.http as triton
text = triton.InferInput("text", [1], "BYTES")
text.set_data_from_numpy(np.array(["good morning"], dtype=object))
answer = triton.InferenceServerClient("{address}").infer("{name}", [text])
print(answer.as_numpy("embedding").shape)"""

_CURL_OPENAI = """\
curl -s {url}/v1/embeddings -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "input": "good morning"}}'"""

_CURL_V2 = """\
curl -s {url}/v2/models/{name}/infer -d '{{"inputs": [{{"name": "text",
  "datatype": "BYTES", "shape": [1], "data": ["good morning"]}}]}}'"""


def snippets(url: str, name: str, *, openai: bool) -> dict[str, str]:
    """Title -> what to type. ``openai``: the model also answers ``/v1/embeddings``."""
    facts = {"url": url, "name": name, "address": urlsplit(url).netloc}
    ours = {"curl, Open Inference Protocol": _CURL_V2}
    if openai:
        ours = {"curl": _CURL_OPENAI, "python, pip install openai": _OPENAI}
    ours["python, pip install 'tritonclient[http]'"] = _TRITONCLIENT
    return {title: text.format(**facts) for title, text in ours.items()}


def invitation(url: str, model: Obtained) -> Iterator[str]:
    """What is printed when the demo has shown its table and stays."""
    yield f"open       {url}/docs  (try every request in the browser)"
    yield f"metrics    {url}/metrics"
    if not model.is_fallback:
        yield f"by hand    headrace serve {shlex.quote(str(model.path))}"
    for title, text in snippets(url, model.name, openai=not model.is_fallback).items():
        yield f"\n--- {title}"
        yield text
    yield "\nCtrl-C ends it."
