"""Triton's own client, pointed at headrace. Needs: pip install 'tritonclient[http]'."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

import numpy as np
import tritonclient.http as triton

TEXTS = ["one", "a few more words", "and a text that is a little longer than the others"]


def text_input(text: str) -> triton.InferInput:
    tensor = triton.InferInput("text", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([text], dtype=object))
    return tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="minilm")
    args = parser.parse_args()
    client = triton.InferenceServerClient(urlsplit(args.url).netloc, concurrency=len(TEXTS))
    assert client.is_server_ready()
    print([each["name"] for each in client.get_model_metadata(args.model)["outputs"]])
    # All under way at one time: the server puts together what pays, each gets its own rows.
    pending = [client.async_infer(args.model, [text_input(text)]) for text in TEXTS]
    for text, request in zip(TEXTS, pending, strict=True):
        embedding = request.get_result().as_numpy("embedding")
        print(embedding.dtype, embedding.shape, text)
    client.close()


if __name__ == "__main__":
    main()
