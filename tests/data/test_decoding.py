"""Images of strangers: each kind is converted as `data.decoding` says, or refused before its pixels are made."""

from __future__ import annotations

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hydrabench.data.decoding import MOST_PIXELS, open_rgb

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_rgb(data))


def test_grey_palette_and_black_and_white_images_are_repeated_in_three_channels():
    grey = Image.fromarray(RAMP)
    three = np.repeat(RAMP[:, :, None], 3, 2)
    assert np.array_equal(pixels(encoded(grey)), three)
    assert np.array_equal(pixels(encoded(grey.convert("P"))), three)
    assert np.array_equal(pixels(encoded(grey.point(lambda v: 255 * (v > 99)).convert("1"))), 255 * (three > 99))


def test_sixteen_bits_keep_their_high_byte_and_are_not_clipped():
    """Pillow's own conversion of grey ones gives white from 255 on."""
    values = np.array([[0, 255, 256, 511, 32768, 65279, 65280, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 128, 254, 255, 255]
    assert pixels(encoded(Image.fromarray(values)))[0, :, 0].tolist() == expected
    rows = b"\0" + b"".join(struct.pack(">HHH", v, v, v) for v in values[0])
    colour = png(8, 1, rows, depth=16, colour=2)
    assert pixels(colour)[0, :, 1].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_one_refused(mode):
    image = Image.fromarray(RAMP).convert(mode)
    assert np.array_equal(pixels(encoded(image))[:, :, 0], RAMP)
    image.putalpha(Image.fromarray(np.maximum(RAMP, 200)))
    with pytest.raises(ValueError, match=r"it is transparent in places \(alpha down to 200 of 255\); flatten it first"):
        open_rgb(encoded(image))


def test_a_transparent_palette_entry_is_refused():
    with pytest.raises(ValueError, match="it is transparent in places"):
        open_rgb(encoded(Image.fromarray(RAMP).convert("P"), transparency=0))


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_pixels_without_a_known_range_are_refused(dtype, mode):
    with pytest.raises(ValueError, match=rf"its pixels are of Pillow's mode {mode}; give 8 or 16 bits a channel"):
        open_rgb(encoded(Image.fromarray(RAMP.astype(dtype)), "TIFF"))


def test_the_first_frame_is_taken_and_the_exif_orientation_ignored():
    wide = Image.fromarray(RAMP[:8])
    other = Image.fromarray(255 - RAMP[:8])
    moving = encoded(wide, "GIF", save_all=True, append_images=[other])
    assert np.array_equal(pixels(moving)[:, :, 0], RAMP[:8])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    assert pixels(encoded(wide, "JPEG", exif=exif)).shape == (8, 16, 3)


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG file by hand. rows: filter bytes and samples."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the filter of the module
@pytest.mark.parametrize("side", [13_000, 10_000, 60_000])
def test_an_image_of_too_many_pixels_is_refused_before_any_is_made(side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"pixels, (more than|the most)|more than 89,478,485 pixels, the most"):
        open_rgb(png(side, side, b"\0" * 100))
    assert side * side > MOST_PIXELS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


def test_another_size_than_the_data_sets_is_refused_by_the_first_bytes():
    with pytest.raises(ValueError, match=r"it has 5000 x 5000 pixels, not 32 x 32"):
        open_rgb(png(5000, 5000, b""), size=(32, 32))


@pytest.mark.parametrize("data", [b"", b"text", encoded(Image.fromarray(RAMP))[:50], b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_damaged_bytes_are_refused(data):
    with pytest.raises(ValueError, match=r"."):
        open_rgb(data)
