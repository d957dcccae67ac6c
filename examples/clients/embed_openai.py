"""The ``openai`` package, pointed at headrace. Needs: pip install openai."""

from __future__ import annotations

import argparse

from openai import OpenAI

TEXTS = ["The ferry leaves at noon.", "When does the boat depart?", "He bakes his own bread."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="minilm")
    args = parser.parse_args()
    client = OpenAI(base_url=f"{args.url}/v1", api_key="none")
    answer = client.embeddings.create(model=args.model, input=TEXTS)
    first = answer.data[0].embedding
    for text, item in zip(TEXTS, answer.data, strict=True):
        similarity = sum(a * b for a, b in zip(first, item.embedding, strict=True))
        print(f"{similarity:.2f}  {text}")
    print(f"{answer.usage.total_tokens} tokens")


if __name__ == "__main__":
    main()
