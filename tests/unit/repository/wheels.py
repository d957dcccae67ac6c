"""A package with a model in it, as somebody would publish one."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from tests.unit.repository.model_files import IDENTITY as MODEL

METADATA = """\
Metadata-Version: 2.1
Name: tiny-model
Version: 1.0
License: Apache-2.0
Requires-Dist: a-package-that-exists-nowhere>=99
"""
CODE = "raise SystemExit('code of the package was run')\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    content = {
        "tiny_model/__init__.py": CODE.encode(),
        "tiny_model/data/model.onnx": MODEL,
        "tiny_model/data/labels.txt": b"cat\ndog\n",
        "tiny_model-1.0.dist-info/METADATA": METADATA.encode(),
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        "tiny_model-1.0.dist-info/RECORD": b"",
        **files,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in content.items():
            wheel.writestr(name, data)
    return path
