"""Which of Triton's backends can be had here, and what to do about the others."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from headrace.repository.triton.schema import Said

_FROM_TENSORFLOW = (
    "convert it: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx, and say "
    'backend: "onnxruntime"'
)


class Backend(msgspec.Struct, frozen=True):
    """One backend.

    Attributes:
        name: as in the field ``backend``.
        platform: as in the field ``platform``, "" where it has none.
        filename: what a version's folder is expected to hold, unless told otherwise.
        format: ``ModelSource.format`` of such a model.
        runtime: what ``ModelConfig.runtime`` becomes.
    """

    name: str
    platform: str
    filename: str
    format: str
    runtime: str


ONNX = Backend("onnxruntime", "onnxruntime_onnx", "model.onnx", "onnx", "onnxruntime")
OPENVINO = Backend("openvino", "", "model.xml", "openvino", "openvino")
PYTHON = Backend("python", "", "model.py", "python", "python")
ENSEMBLE = Backend("", "ensemble", "", "ensemble", "auto")

BACKENDS = (ONNX, OPENVINO, PYTHON)
"""Those with a file, in the order in which Triton looks for one."""

_ELSEWHERE = {
    "tensorrt": "serve the ONNX file that the plan was built from",
    "tensorrt_plan": "serve the ONNX file that the plan was built from",
    "tensorflow": _FROM_TENSORFLOW,
    "tensorflow_savedmodel": _FROM_TENSORFLOW,
    "tensorflow_graphdef": _FROM_TENSORFLOW,
    "pytorch": "export it to ONNX where it was trained: torch.onnx.export(model, args, "
    "'model.onnx'), or load it in a Python model (backend: \"python\")",
    "fil": "convert the trees to ONNX: headrace convert, onnxmltools or skl2onnx",
    "dali": "do the preprocessing in a Python model, or give the task 'image' in model.toml",
    "tensorrtllm": "serve the model's ONNX export, or keep this one where it runs",
    "vllm": "serve the model's ONNX export, or keep this one where it runs",
    "identity": 'a Python model (backend: "python") of three lines gives back what it is sent',
    "repeat": 'a decoupled Python model (backend: "python") of ten lines does the same',
    "square": 'a decoupled Python model (backend: "python") of ten lines does the same',
}
for _alias in ("pytorch_libtorch", "pytorch_aoti", "torch_aoti", "pytorch_libtorch_alt"):
    _ELSEWHERE[_alias] = _ELSEWHERE["pytorch"]
_ANY = 'known here: backend "onnxruntime", "openvino" or "python", and platform "ensemble"'


def backend_of(said: Said, files: Collection[str]) -> Backend | None:
    """What runs the model, by its configuration or else by the files of its newest version.

    None where neither tells; then the files are looked at as those of any other model.

    Raises:
        ConfigError: a backend that is not to be had here, or a pair that contradicts itself.
    """
    name, platform = said.values.get("backend", ""), said.values.get("platform", "")
    if platform == ENSEMBLE.platform:
        if name:
            raise said.error(
                "backend", f"expected nothing beside platform 'ensemble', got {name!r}"
            )
        return ENSEMBLE
    for known in BACKENDS:
        if name == known.name or (not name and platform and platform == known.platform):
            if platform and platform != known.platform:
                raise said.error("platform", f"{platform!r} does not go with backend {name!r}")
            return known
    if name or platform:
        field, value = ("backend", name) if name else ("platform", platform)
        raise said.error(
            field, f"{value!r} is not a backend that runs here", hint=_ELSEWHERE.get(value, _ANY)
        )
    wanted = said.values.get("default_model_filename")
    for known in BACKENDS:
        if wanted == known.filename or (not wanted and known.filename in files):
            return known
    return None
