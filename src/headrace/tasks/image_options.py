"""The options of image classification, and what they default to for a given model.

Defaults are those most image classifiers were trained with: shorter side resized to
size / 0.875, centre crop, values in 0..1, ImageNet's mean and standard deviation
(https://docs.pytorch.org/vision/stable/models.html). They follow from the model's input:
a single channel means grey values without a mean, UINT8 means the model does it itself,
and an input below 128 pixels is stretched, because there is nothing to crop away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from headrace.errors import ConfigError, ModelLoadError
from headrace.limits import Positive
from headrace.types import DYNAMIC, TensorSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_DEFAULT_SIZE = 224
"""Where the model takes any size: what ResNet and most of its successors were trained at."""

_STRETCH_BELOW = 128

Layout = Literal["NCHW", "NHWC"]
Resize = Literal["crop", "stretch", "pad"]


class ImageOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``task_options`` of image-classification. None and 0: found out from the model."""

    size: tuple[Positive, Positive] | None = None
    """(height, width) the model takes; needed only where its own shape leaves it open."""

    layout: Layout | None = None
    """Where the channels are; needed only where the model's shape leaves it open."""

    channels: Literal[1, 3] | None = None
    """1: grey values. 3: red, green, blue."""

    resize: Resize | None = None
    """``crop``: shorter side to size / ``crop_fraction``, then the centre. ``stretch``: to
    the size, whatever the proportions. ``pad``: whole image in proportion, ``background``
    around it."""

    crop_fraction: float = 0.875
    """224 of 256 pixels, as in most ImageNet evaluations."""

    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    scale: float | None = None
    """Every value of 0..255 is multiplied by it first; 1/255 by default."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Then (value - mean) / std: one number for all channels, or three in the order RGB."""

    channel_order: Literal["RGB", "BGR"] = "RGB"
    """BGR for models that grew up with OpenCV or Caffe."""

    background: tuple[int, int, int] = (255, 255, 255)
    """What shows through transparent pixels, and around the image with ``pad``. White,
    because logos and drawings are made for it."""

    labels: tuple[str, ...] = ()
    """Names of the classes in the model's order; without them their numbers are used."""

    activation: Literal["auto", "softmax", "none"] = "auto"
    """How the model's numbers become probabilities. ``auto``: none where the output's name
    says that they are (prob, softmax), else softmax. Decided once, when the model loads."""

    output: str = ""
    """The model's output to read; "" takes the first floating-point one."""

    top_k: Positive = 1
    """Labels and scores for each image; above 1 both outputs are [-1, top_k]."""

    max_pixels: Positive = 64_000_000
    """Width x height of one image, checked before anything is unpacked. 64 megapixels take
    192 MB as RGB; most cameras have less."""


class Geometry(msgspec.Struct, frozen=True):
    """What one image becomes: [channels, height, width], or channels last for NHWC."""

    height: int
    width: int
    channels: int
    layout: Layout
    datatype: str

    @property
    def resize(self) -> Resize:
        """The default way to get there."""
        return "stretch" if min(self.height, self.width) < _STRETCH_BELOW else "crop"


def read_options(options: Mapping[str, Any]) -> ImageOptions:
    """Checks names and values.

    Raises:
        ConfigError: an option is unknown, or its value is not one it takes.
    """
    try:
        known = msgspec.convert(options, ImageOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"task_options of an image model: {error}",
            hint=f"known options: {', '.join(ImageOptions.__struct_fields__)}",
        ) from None
    if not 0 < known.crop_fraction <= 1:
        raise ConfigError(
            f"crop_fraction is {known.crop_fraction}; expected more than 0, at most 1"
        )
    if not all(0 <= value <= 255 for value in known.background):
        raise ConfigError(f"background is {list(known.background)}; expected values of 0 to 255")
    if known.std is not None and 0 in known.std:
        raise ConfigError(f"std is {list(known.std)}; values are divided by it")
    return known


def geometry(spec: TensorSpec, options: ImageOptions) -> Geometry:
    """What the model's one input leaves open is filled from the options, then by default.

    Raises:
        ModelLoadError: the input is no image: rank, datatype or number of channels.
        ConfigError: the options contradict the input.
    """
    if len(spec.shape) != 4 or spec.datatype not in ("FP32", "FP16", "UINT8"):
        raise ModelLoadError(
            f"input {spec.name!r} is {spec.datatype} {list(spec.shape)}; an image classifier "
            "takes FP32, FP16 or UINT8 of rank 4, such as [-1, 3, 224, 224]",
            hint='set task = "tensor" to serve its tensors as they are',
        )
    layout: Layout = options.layout or ("NHWC" if _channels_last(spec.shape) else "NCHW")
    axes = spec.shape[1:] if layout == "NHWC" else (*spec.shape[2:], spec.shape[1])
    height, width = options.size or (_DEFAULT_SIZE, _DEFAULT_SIZE)
    sizes = (
        _agree(spec, "height", axes[0], height, told=options.size is not None),
        _agree(spec, "width", axes[1], width, told=options.size is not None),
        _agree(spec, "channels", axes[2], options.channels or 3, told=options.channels is not None),
    )
    if sizes[2] not in (1, 3):
        raise ModelLoadError(
            f"input {spec.name!r} of shape {list(spec.shape)} has {sizes[2]} channels as {layout}; "
            "an image has 1 or 3",
            hint="say where the channels are: layout = NCHW or NHWC",
        )
    return Geometry(*sizes, layout, spec.datatype)


def normalisation(
    options: ImageOptions, shape: Geometry
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """(scale, mean, std), the last two of length ``channels`` and in RGB order.

    Raises:
        ConfigError: mean or std is neither one number nor one for each channel, or they are
            given for a model that takes whole numbers.
    """
    raw = shape.datatype == "UINT8"
    if raw and (options.scale is not None or options.mean is not None or options.std is not None):
        raise ConfigError(
            "the model takes UINT8, the pixels as they are; scale, mean and std need a float input"
        )
    if options.mean and options.scale is None and max(options.mean) > 1:
        raise ConfigError(
            f"mean {list(options.mean)} is in units of 0..255, but values are scaled to 0..1 first",
            hint="set scale = 1, or divide mean and std by 255",
        )
    plain = raw or shape.channels == 1
    scale = options.scale if options.scale is not None else (1.0 if raw else 1 / 255)
    mean = _per_channel("mean", options.mean, (0.0,) if plain else IMAGENET_MEAN, shape.channels)
    std = _per_channel("std", options.std, (1.0,) if plain else IMAGENET_STD, shape.channels)
    return scale, mean, std


def gives_probabilities(output: TensorSpec, options: ImageOptions) -> bool:
    """Whether the model's numbers are probabilities already."""
    if options.activation != "auto":
        return options.activation == "none"
    name = output.name.lower()
    return "prob" in name or "softmax" in name


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[3] in (1, 3) and shape[1] not in (1, 3)


def _agree(spec: TensorSpec, what: str, own: int, wanted: int, *, told: bool) -> int:
    if own == DYNAMIC:
        return wanted
    if told and own != wanted:
        raise ConfigError(
            f"task_options say {what} {wanted}, but input {spec.name!r} has shape "
            f"{list(spec.shape)}",
            expected=own,
            got=wanted,
        )
    return own


def _per_channel(
    name: str, given: tuple[float, ...] | None, default: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    values = default if given is None else given
    if len(values) == 1:
        return values * channels
    if len(values) != channels:
        raise ConfigError(
            f"{name} has {len(values)} values, the model takes {channels} channels",
            hint=f"give {name} one value, or one for each channel",
        )
    return values
