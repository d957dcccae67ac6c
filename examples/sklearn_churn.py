"""Train a scikit-learn pipeline, convert it, serve it, ask it: from notebook to URL.

    pip install 'headrace[sklearn]' pandas
    python examples/sklearn_churn.py

The customers are made up; nothing is fetched. The server is an ordinary
``headrace serve`` in a process of its own, and ends when the script does.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import headrace


def customers(rows: int = 2000, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """A table as it comes: numbers, names, yes and no, and holes."""
    rng = np.random.default_rng(seed)
    monthly = rng.uniform(5, 90, rows).round(2)
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 80, rows),
            "plan": rng.choice(["basic", "plus", "pro"], rows),
            "monthly": np.where(rng.random(rows) < 0.1, np.nan, monthly),
            "autopay": rng.random(rows) < 0.5,
        }
    )
    unhappy = 0.06 * (monthly - 40) - 1.5 * table["autopay"] + (table["plan"] == "basic")
    leaves = rng.random(rows) < 1 / (1 + np.exp(-unhappy))
    return table, np.where(leaves, "leaves", "stays")


def train(table: pd.DataFrame, outcome: np.ndarray) -> Pipeline:
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    columns = ColumnTransformer(
        [
            ("numbers", numbers, ["age", "monthly"]),
            ("classes", OneHotEncoder(handle_unknown="ignore"), ["plan"]),
        ],
        remainder="passthrough",
    )
    return make_pipeline(columns, HistGradientBoostingClassifier(max_iter=50)).fit(table, outcome)


def call(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as reply:
        return json.loads(reply.read() or b"null")


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < give_up:
        try:
            urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the server did not start")


def ask(url: str) -> None:
    rows = [
        {"age": 34, "plan": "basic", "monthly": 79.9, "autopay": False},
        {"age": 61, "plan": "pro", "monthly": None, "autopay": True},
    ]
    answer = call(f"{url}/v1/models/churn:predict", {"instances": rows})
    for row, prediction in zip(rows, answer["predictions"], strict=True):
        print(f"{row} -> {prediction}")

    # The same as columns, in the Open Inference Protocol: what data frame clients send.
    datatypes = {"age": "INT64", "plan": "BYTES", "monthly": "FP64", "autopay": "BOOL"}
    inputs = [
        {"name": name, "datatype": kind, "shape": [1], "data": [rows[0][name]]}
        for name, kind in datatypes.items()
    ]
    answer = call(f"{url}/v2/models/churn/infer", {"inputs": inputs})
    print({each["name"]: each["data"] for each in answer["outputs"]})

    try:
        call(f"{url}/v1/models/churn:predict", {"instances": [{**rows[0], "plan": 3}]})
    except urllib.error.HTTPError as refusal:
        print(f"{refusal.code}: {json.loads(refusal.read())['error']}")


def main() -> None:
    pipeline = train(*customers())
    unseen, outcome = customers(500, seed=1)
    print(f"accuracy on customers it has not seen: {pipeline.score(unseen, outcome):.2f}")
    with tempfile.TemporaryDirectory() as scratch, socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        probe.close()
        folder = headrace.export_sklearn(pipeline, unseen, Path(scratch) / "churn")
        command = [sys.executable, "-m", "headrace", "serve", str(folder), "--port", str(port)]
        command += ["--log-level", "warning"]
        with subprocess.Popen(command) as server:
            try:
                wait_until_ready(f"http://127.0.0.1:{port}", server)
                ask(f"http://127.0.0.1:{port}")
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
