from __future__ import annotations

import base64
import io
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headrace.errors import (
    ConfigError,
    HeadraceError,
    InferenceFailed,
    InvalidRequest,
    MissingExtra,
    ModelLoadError,
    PayloadTooLarge,
)
from headrace.tasks.base import Item
from headrace.tasks.image import ImageClassification
from headrace.types import InferenceRequest, Tensor, TensorSpec

LOGITS = (TensorSpec("logits", "FP32", (-1, 3)),)
RAW = {"scale": 1, "mean": [0], "std": [1], "resize": "stretch"}
"""Pixels as they are, so that a test can read them."""


def make(
    shape: tuple[int, ...] = (-1, 3, 8, 8),
    datatype: str = "FP32",
    outputs: tuple[TensorSpec, ...] = LOGITS,
    **options: Any,
) -> ImageClassification:
    return ImageClassification.create((TensorSpec("x", datatype, shape),), outputs, options)


def request(*images: bytes) -> InferenceRequest:
    data = np.empty(len(images), dtype=object)
    data[:] = images
    return InferenceRequest("model", [Tensor("image", "BYTES", data.shape, data)])


def pixels_of(task: ImageClassification, *images: bytes) -> list[np.ndarray]:
    arrays = [item.arrays[0] for item in task.prepare(request(*images)).items]
    return [array for array in arrays if array is not None]


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def plain(colour: Any, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def quarters() -> Image.Image:
    """Red, green / blue, white, so that every turn and flip shows."""
    image = Image.new("RGB", (8, 8))
    for corner, colour in [((0, 0), (255, 0, 0)), ((4, 0), (0, 255, 0)), ((0, 4), (0, 0, 255))]:
        image.paste(colour, (*corner, corner[0] + 4, corner[1] + 4))
    image.paste((255, 255, 255), (4, 4, 8, 8))
    return image


def finish(task: ImageClassification, *rows: list[float]) -> list[Tensor]:
    items = [Item((np.zeros((1, 1), np.float32),)) for _ in rows]
    return task.finish(request(), items, [[np.array([row], np.float32)] for row in rows])


class TestDecoding:
    @pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "JPEG"])
    def test_five_formats(self, kind: str) -> None:
        options = {"lossless": True} if kind == "WEBP" else {}
        (array,) = pixels_of(make(**RAW), encode(quarters(), kind, **options))
        assert array.shape == (1, 3, 8, 8)
        assert array.dtype == np.float32
        corners = array[0, :, [1, 1, 6, 6], [1, 6, 1, 6]]
        expected = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
        np.testing.assert_allclose(corners, expected, atol=40 if kind == "JPEG" else 0)

    def test_only_the_first_frame_of_an_animation(self) -> None:
        frames = [plain((255, 0, 0)), plain((0, 255, 0))]
        data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert pixels_of(make(**RAW), data)[0][0, :, 4, 4].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_turned_camera(self, orientation: int) -> None:
        undo = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        taken = quarters().transpose(undo[orientation]) if orientation > 1 else quarters()
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned, upright = pixels_of(make(**RAW), encode(taken, exif=exif), encode(quarters()))
        np.testing.assert_array_equal(turned, upright)

    def test_broken_exif_does_not_matter(self) -> None:
        data = encode(quarters(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
        np.testing.assert_array_equal(*pixels_of(make(**RAW), data, encode(quarters())))

    @pytest.mark.parametrize("prefix", [b"", b"data:image/png;base64,"])
    def test_base64_for_those_who_have_only_json(self, prefix: bytes) -> None:
        data = encode(quarters())
        text = prefix + base64.encodebytes(data)
        np.testing.assert_array_equal(*pixels_of(make(**RAW), data, text))

    def test_a_large_photo_is_the_same_as_a_careful_one(self) -> None:
        """JPEGs are unpacked at a fraction of their size where that is enough."""
        ramp = np.linspace(0, 255, 1600).astype(np.uint8)
        photo = Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), 2))
        fast, slow = pixels_of(make(**RAW), encode(photo, "JPEG", quality=95), encode(photo))
        np.testing.assert_allclose(fast, slow, atol=3)


class TestColours:
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            (plain(77, mode="L"), [77, 77, 77]),
            (plain(1, mode="1"), [255, 255, 255]),
            (plain((10, 20, 30, 255), mode="RGBA"), [10, 20, 30]),
            (plain((0, 0, 0, 0), mode="RGBA"), [255, 255, 255]),
            (plain((0, 0, 0, 51), mode="RGBA"), [204, 204, 204]),
            (plain((40, 0), mode="LA"), [255, 255, 255]),
            (plain((5, 6, 7)).quantize(4), [5, 6, 7]),
            (Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)), [128, 128, 128]),
        ],
        ids=["grey", "bits", "opaque", "clear", "glass", "grey-clear", "palette", "16-bit"],
    )
    def test_every_kind_of_pixel_becomes_rgb(self, image: Image.Image, expected: Any) -> None:
        (array,) = pixels_of(make(**RAW), encode(image))
        np.testing.assert_allclose(array[0, :, 4, 4], expected, atol=1)

    def test_cmyk(self) -> None:
        (array,) = pixels_of(make(**RAW), encode(plain((0, 255, 255, 0), mode="CMYK"), "JPEG"))
        np.testing.assert_allclose(array[0, :, 4, 4], [255, 0, 0], atol=3)

    def test_the_background_can_be_chosen(self) -> None:
        clear = encode(plain((0, 0, 0, 0), mode="RGBA"))
        task = make(background=[1, 2, 3], **RAW)
        assert pixels_of(task, clear)[0][0, :, 4, 4].tolist() == [1, 2, 3]

    def test_grey_for_a_model_of_one_channel(self) -> None:
        (array,) = pixels_of(make((-1, 1, 8, 8)), encode(plain((255, 255, 255))))
        assert array.shape == (1, 1, 8, 8)
        np.testing.assert_allclose(array, 1.0, rtol=1e-6)

    def test_blue_first(self) -> None:
        task = make(channel_order="BGR", scale=1, mean=[1, 2, 3], std=[1])
        (array,) = pixels_of(task, encode(plain((10, 20, 30))))
        assert array[0, :, 4, 4].tolist() == [27, 18, 9]


class TestNumbers:
    def test_imagenet_by_default(self) -> None:
        (array,) = pixels_of(make(), encode(plain((255, 0, 127))))
        value = (np.array([255, 0, 127]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(array[0, :, 4, 4], value, rtol=1e-5)

    @pytest.mark.parametrize(("datatype", "dtype"), [("UINT8", np.uint8), ("FP16", np.float16)])
    def test_other_datatypes(self, datatype: str, dtype: type) -> None:
        (array,) = pixels_of(make(datatype=datatype), encode(plain((255, 0, 7))))
        assert array.dtype == dtype
        if datatype == "UINT8":
            assert array[0, :, 4, 4].tolist() == [255, 0, 7]

    def test_channels_last_is_seen(self) -> None:
        (array,) = pixels_of(make((-1, 8, 6, 3), **RAW), encode(plain((1, 2, 3))))
        assert array.shape == (1, 8, 6, 3)
        assert array.flags.c_contiguous

    @pytest.mark.parametrize("size", [(300, 200), (20, 30), (1, 1), (1, 500), (30_000, 2)])
    @pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
    def test_any_size_becomes_the_models(self, size: tuple[int, int], resize: str) -> None:
        (array,) = pixels_of(make((-1, 3, 20, 30), resize=resize), encode(plain((9, 9, 9), size)))
        assert array.shape == (1, 3, 20, 30)
        assert np.isfinite(array).all()

    def test_a_crop_takes_the_middle_in_proportion(self) -> None:
        wide = Image.new("RGB", (60, 20), (255, 0, 0))
        wide.paste((0, 255, 0), (22, 0, 38, 20))
        task = make((-1, 3, 8, 8), **{**RAW, "resize": "crop", "crop_fraction": 0.7})
        (array,) = pixels_of(task, encode(wide))
        assert (array[0, 1] > 200).all()

    def test_padding_keeps_the_whole_image(self) -> None:
        task = make((-1, 3, 8, 8), **{**RAW, "resize": "pad"}, background=[7, 7, 7])
        (array,) = pixels_of(task, encode(plain((200, 0, 0), (16, 8))))
        assert array[0, 0, :, 4].tolist() == [7, 7, 200, 200, 200, 200, 7, 7]

    def test_224_where_the_model_takes_any_size(self) -> None:
        (array,) = pixels_of(make((-1, 3, -1, -1)), encode(plain((1, 1, 1))))
        assert array.shape == (1, 3, 224, 224)

    def test_every_image_is_an_item_of_its_own(self) -> None:
        images = [encode(plain((i, i, i))) for i in range(3)]
        items = make(**RAW).prepare(request(*images)).items
        assert [item.rows for item in items] == [1, 1, 1]
        assert [item.arrays[0][0, 0, 0, 0] for item in items if item.arrays[0] is not None] == [
            0,
            1,
            2,
        ]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly a pixel."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    size = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    data = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


class TestBadImages:
    @pytest.mark.parametrize(
        ("data", "seems"),
        [
            (b"", "empty"),
            (b"hello, is this a cat?", "text that begins 'hello, is this a cat?'"),
            (b'  {"image": 1}', "JSON"),
            (b"<svg xmlns=", "an SVG drawing"),
            (b"<!doctype html>", "HTML or XML"),
            (b"%PDF-1.7 ...", "a PDF"),
            (b"PK\x03\x04....", "a ZIP archive"),
            (b"II*\0........", "a TIFF"),
            (b"\0\0\0\x1cftypheic", "a HEIC or AVIF image, or a video"),
            (b"\x00\x01\x02\x03\xfe", "bytes that begin 00 01 02 03 fe"),
            (base64.b64encode(b"%PDF-1.7 and so on"), "a PDF"),
        ],
    )
    def test_what_is_no_image_is_told_what_it_looks_like(self, data: bytes, seems: str) -> None:
        with pytest.raises(InvalidRequest, match="image 1 is not an image but") as caught:
            make().prepare(request(encode(plain((1, 1, 1))), data))
        assert caught.value.details["looks_like"] == seems
        assert caught.value.details["index"] == 1

    @pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "JPEG"])
    def test_half_an_image(self, kind: str) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        data = encode(Image.fromarray(noise), kind)
        with pytest.raises(InvalidRequest, match=f"image 0 is a {kind}.*cut off or corrupt"):
            make().prepare(request(data[: len(data) // 2]))

    def test_more_pixels_than_allowed(self) -> None:
        with pytest.raises(PayloadTooLarge, match="image 0 has 20 x 10 pixels; max_pixels is 199"):
            make(max_pixels=199).prepare(request(encode(plain(0, (20, 10)))))
        make(max_pixels=200).prepare(request(encode(plain(0, (20, 10)))))

    @pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
    def test_a_bomb_is_refused_before_it_is_unpacked(self, side: int) -> None:
        """Below, at and beyond the sizes at which Pillow itself warns and refuses."""
        with pytest.raises(PayloadTooLarge, match="max_pixels is 64000000"):
            make().prepare(request(png_header(side, side)))

    def test_no_image(self) -> None:
        with pytest.raises(InvalidRequest, match="no image"):
            make().prepare(request())

    @given(data=st.data(), kind=st.sampled_from(["PNG", "GIF", "BMP", "WEBP", "JPEG"]))
    def test_damage_is_the_callers_error_or_harmless(self, data: st.DataObject, kind: str) -> None:
        image = bytearray(encode(quarters(), kind))
        for _ in range(data.draw(st.integers(1, 4))):
            image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
        task = make(max_pixels=10_000)
        try:
            (array,) = pixels_of(task, bytes(image))
        except HeadraceError as error:
            assert isinstance(error, InvalidRequest | PayloadTooLarge)  # noqa: PT017 - either
        else:
            assert array.shape == (1, 3, 8, 8)

    @given(st.binary(max_size=200))
    def test_so_is_noise(self, data: bytes) -> None:
        with pytest.raises((InvalidRequest, PayloadTooLarge)):
            make(max_pixels=10_000).prepare(request(data))


class TestAnswers:
    def test_logits_become_probabilities(self) -> None:
        label, score, probabilities = finish(
            make(labels=["cat", "dog", "eel"]), [0, 0, 0], [1, 3, 2]
        )
        assert label.data.tolist() == [b"cat", b"dog"]
        np.testing.assert_allclose(probabilities.data.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(
            probabilities.data[1], np.exp([1, 3, 2]) / np.exp([1, 3, 2]).sum()
        )
        np.testing.assert_allclose(score.data, probabilities.data.max(axis=1))
        assert probabilities.data.dtype == np.float32

    def test_huge_logits_do_not_overflow(self) -> None:
        assert finish(make(), [1000, 0, -1000])[2].data.tolist() == [[1, 0, 0]]

    @pytest.mark.parametrize(
        ("name", "activation", "applied"),
        [
            ("logits", "auto", True),
            ("probabilities", "auto", False),
            ("Softmax_12", "auto", False),
            ("probabilities", "softmax", True),
            ("logits", "none", False),
        ],
    )
    def test_whether_there_is_a_softmax_is_decided_at_load(
        self, name: str, activation: str, applied: bool
    ) -> None:
        task = make(outputs=(TensorSpec(name, "FP32", (-1, 3)),), activation=activation)
        probabilities = finish(task, [0.5, 0.25, 0.25])[2].data
        assert (probabilities.tolist() != [[0.5, 0.25, 0.25]]) == applied

    def test_classes_without_names_are_counted(self) -> None:
        assert finish(make(), [0, 9, 1])[0].data.tolist() == [b"1"]

    def test_the_best_k(self) -> None:
        task = make(top_k=2, labels=["a", "b", "c"], activation="none")
        label, score, _ = finish(task, [0.25, 0.125, 0.625], [0.5, 0.5, 0])
        assert [spec.shape for spec in task.outputs] == [(-1, 2), (-1, 2), (-1, 3)]
        assert label.data.tolist() == [[b"c", b"a"], [b"a", b"b"]]
        assert score.data.tolist() == [[0.625, 0.25], [0.5, 0.5]]

    def test_a_model_that_ends_in_one_pixel(self) -> None:
        task = make(outputs=(TensorSpec("y", "FP32", (-1, 3, 1, 1)),))
        results = [[np.array([0, 9, 1], np.float32).reshape(1, 3, 1, 1)]]
        label, _, probabilities = task.finish(request(), [], results)
        assert label.data.tolist() == [b"1"]
        assert probabilities.shape == (1, 3)

    def test_the_output_can_be_chosen(self) -> None:
        outputs = (TensorSpec("features", "FP32", (-1, 9)), TensorSpec("y", "FP16", (-1, 2)))
        task = make(outputs=outputs, output="y")
        results = [[np.zeros((1, 9), np.float32), np.array([[1, 2]], np.float16)]]
        assert task.finish(request(), [], results)[0].data.tolist() == [b"1"]

    @pytest.mark.parametrize("rows", [[[1, 2]], [[1, 2, 3], [1, 2]]])
    def test_a_model_that_breaks_its_word(self, rows: list[list[float]]) -> None:
        with pytest.raises(InferenceFailed, match="the model gave"):
            finish(make(), *rows)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"labls": []}, "unknown field `labls`"),
            ({"resize": "squash"}, "Invalid enum value 'squash'"),
            ({"size": [9, 8]}, "say height 9, but input 'x' has shape"),
            ({"channels": 1}, "say channels 1, but"),
            ({"mean": [0.5, 0.5]}, "mean has 2 values, the model takes 3"),
            ({"mean": [123.7, 116.3, 103.5]}, "in units of 0..255"),
            ({"std": [0.0]}, "values are divided by it"),
            ({"crop_fraction": 0}, "crop_fraction is 0"),
            ({"background": [0, 0, 256]}, "background is"),
            ({"labels": ["a"]}, "1 labels, but output 'logits'"),
            ({"top_k": 4}, "top_k is 4, but the model has 3"),
            ({"output": "probs"}, "no output 'probs'"),
        ],
    )
    def test_what_cannot_be_is_refused_at_load(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            make(**options)

    def test_whole_numbers_are_not_normalised(self) -> None:
        with pytest.raises(ConfigError, match="takes UINT8"):
            make(datatype="UINT8", mean=[0.5])

    @pytest.mark.parametrize(
        ("shape", "datatype", "message"),
        [
            ((-1, 10), "FP32", "takes FP32, FP16 or UINT8 of rank 4"),
            ((-1, 3, 8, 8), "INT64", "takes FP32, FP16 or UINT8 of rank 4"),
            ((-1, 4, 8, 8), "FP32", "has 4 channels as NCHW"),
        ],
    )
    def test_what_is_no_image_model_is_refused(
        self, shape: tuple[int, ...], datatype: str, message: str
    ) -> None:
        with pytest.raises(ModelLoadError, match=message):
            make(shape, datatype)

    def test_one_input_and_numbers_out(self) -> None:
        two = (TensorSpec("a", "FP32", (-1, 3, 8, 8)), TensorSpec("b", "FP32", (-1,)))
        with pytest.raises(ModelLoadError, match="2 inputs"):
            ImageClassification.create(two, LOGITS, {})
        with pytest.raises(ModelLoadError, match="no floating-point output"):
            make(outputs=(TensorSpec("y", "INT64", (-1,)),))

    def test_without_pillow_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL", None)
        with pytest.raises(MissingExtra) as caught:
            make()
        assert caught.value.hint == "pip install 'headrace[image]'"
