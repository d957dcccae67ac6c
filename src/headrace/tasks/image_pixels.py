"""Pixels -> the tensor an image classifier takes: colour, size, numbers, layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headrace.tasks.image_decode import load_pixels, open_image
from headrace.tasks.image_options import Geometry, ImageOptions, normalisation
from headrace.types import DTYPE_OF

if TYPE_CHECKING:
    from PIL.Image import Image

_REDUCING_GAP = 3.0
"""Large images are first shrunk by whole factors to 3 times the size wanted; from there on
Pillow's documentation calls the result indistinguishable from the slow way."""


class Preprocessor:
    """Makes ``[1, C, H, W]`` or ``[1, H, W, C]`` of one encoded image. Thread-safe.

    Raises:
        ConfigError: options that contradict one another or the model.
    """

    def __init__(self, shape: Geometry, options: ImageOptions) -> None:
        self._shape = shape
        self._options = options
        self._resize = options.resize or shape.resize
        self._target = (shape.width, shape.height)
        scale, mean, std = normalisation(options, shape)
        # (v * scale - mean) / std as one multiplication and one addition for each channel.
        self._factor = (scale / np.asarray(std)).astype(np.float32)
        self._offset = (-np.asarray(mean) / np.asarray(std)).astype(np.float32)
        gap = _REDUCING_GAP * max(self._target)
        self._at_least = int(gap / (options.crop_fraction if self._resize == "crop" else 1))

    def tensor(self, data: bytes, index: int) -> np.ndarray:
        """The image as one row of the model's input. ``index`` names it in errors.

        Raises:
            InvalidRequest: not an image, or a broken one.
            PayloadTooLarge: more than ``max_pixels``.
        """
        image = open_image(data, index, self._options.max_pixels)
        image = load_pixels(image, data, index, at_least=self._at_least)
        image = self._resized(self._coloured(image))
        pixels = np.asarray(image, dtype=np.uint8).reshape(
            self._shape.height, self._shape.width, self._shape.channels
        )
        values = pixels if self._shape.datatype == "UINT8" else self._normalised(pixels)
        if self._options.channel_order == "BGR":
            values = values[:, :, ::-1]
        if self._shape.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, DTYPE_OF[self._shape.datatype])[np.newaxis]

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        values = pixels * self._factor
        values += self._offset
        return values

    def _coloured(self, image: Image) -> Image:
        """To 8 bits, on the background where it is transparent, in the model's channels."""
        mode = "L" if self._shape.channels == 1 else "RGB"
        if image.mode.startswith("I"):  # 16-bit grey; convert() would clip instead of scale
            return _from_16_bits(image).convert(mode)
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            from PIL.Image import new

            ground = new("RGBA", image.size, (*self._options.background, 255))
            ground.alpha_composite(image.convert("RGBA"))
            image = ground
        return image.convert(mode)

    def _resized(self, image: Image) -> Image:
        if self._resize == "pad":
            return self._padded(image)
        box = (0.0, 0.0, float(image.width), float(image.height))
        if self._resize == "crop":
            box = self._crop_box(image)
        return self._scaled(image, self._target, box)

    def _crop_box(self, image: Image) -> tuple[float, float, float, float]:
        """The part of the image that remains; cutting first means an image of 30,000 x 10
        pixels is never blown up to its full width."""
        width, height = self._target
        shrink = min(image.width / width, image.height / height) * self._options.crop_fraction
        left = (image.width - width * shrink) / 2
        top = (image.height - height * shrink) / 2
        return (
            max(left, 0.0),
            max(top, 0.0),
            min(left + width * shrink, image.width),
            min(top + height * shrink, image.height),
        )

    def _padded(self, image: Image) -> Image:
        from PIL.Image import new

        width, height = self._target
        grow = min(width / image.width, height / image.height)
        size = (max(1, round(image.width * grow)), max(1, round(image.height * grow)))
        small = self._scaled(image, size, (0.0, 0.0, float(image.width), float(image.height)))
        ground = new("RGB", self._target, self._options.background).convert(image.mode)
        ground.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
        return ground

    def _scaled(
        self, image: Image, size: tuple[int, int], box: tuple[float, float, float, float]
    ) -> Image:
        from PIL.Image import Resampling

        method = Resampling[self._options.interpolation.upper()]
        return image.resize(size, method, box=box, reducing_gap=_REDUCING_GAP)


def _from_16_bits(image: Image) -> Image:
    from PIL.Image import fromarray

    values = np.asarray(image).astype(np.int64)
    return fromarray((values.clip(0, 65_535) >> 8).astype(np.uint8))
