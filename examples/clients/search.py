"""Which lines of a file are about what you ask? Semantic search in sixty lines.

    headrace demo                                      # in another terminal
    python examples/clients/search.py README.md "how do I serve a model?"

Nothing but the standard library and numpy; any text embedding model will do.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

import numpy as np

TEXTS_PER_REQUEST = 64


def embed(url: str, model: str, texts: list[str]) -> np.ndarray:
    """One unit vector for each text, ``[len(texts), width]``."""
    rows: list[list[float]] = []
    for start in range(0, len(texts), TEXTS_PER_REQUEST):
        body = {"model": model, "input": texts[start : start + TEXTS_PER_REQUEST]}
        request = urllib.request.Request(f"{url}/v1/embeddings", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            rows += [each["embedding"] for each in json.load(answer)["data"]]
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a text file")
    parser.add_argument("query")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--top", type=int, default=3)
    args = parser.parse_args()
    lines = [line.strip() for line in args.file.read_text().splitlines() if line.strip()]
    if not lines:
        raise SystemExit(f"{args.file} has no text in it")
    vectors = embed(args.url, args.model, [*lines, args.query])
    cosines = vectors[:-1] @ vectors[-1]
    for number in np.argsort(-cosines)[: args.top]:
        print(f"{cosines[number]:.2f}  {lines[number]}")


if __name__ == "__main__":
    main()
