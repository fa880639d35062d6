"""Decode untrusted image files as RGB; the size is checked before decoding.

- Grey, palette, black-and-white, CMYK and YCbCr images become RGB as Pillow converts them.
- Of 16 bits a channel, the high byte is kept: v / 256 rounded down, in grey as in colour. Nothing is clipped.
- An alpha channel that is opaque everywhere is dropped. Transparent pixels have no colour of their own: refused.
- Float and 32-bit images have no known range: refused.
- Of an animation, the first frame is taken. EXIF is ignored, the orientation included, as torchvision's folders do.
"""

from __future__ import annotations

import io
import warnings
from functools import cache
from typing import Any

import numpy as np

MOST_PIXELS = (
    89_478_485  # a quarter of a gigabyte as RGB, where Pillow begins to warn; ImageNet's largest has 24 million
)
_DIRECT = ("RGB", "L", "P", "1", "CMYK", "YCbCr")
_WITH_ALPHA = ("RGBA", "LA", "PA")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def open_rgb(data: bytes, *, size: tuple[int, int] | None = None) -> Any:
    """Return an encoded image as a Pillow image in RGB.

    Args:
        data: a file's bytes. size: the height and width that it must have, None for any.
    Raises: ValueError that says why it cannot be read, or is not, as the end of "... cannot be read as an image: ".
    """
    pillow = _pillow()
    try:
        image = pillow.open(io.BytesIO(data))
        _require_size(image, size)
        return _to_rgb(image)
    except pillow.UnidentifiedImageError as error:
        raise ValueError("of no known format") from error
    except pillow.DecompressionBombError as error:
        raise ValueError(f"it has more than {MOST_PIXELS:,} pixels, the most that is decoded") from error
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(str(error) or type(error).__name__) from error


@cache
def _pillow() -> Any:
    """Pillow's `Image` module, without its warning of large images, whose size is checked here."""
    from PIL import Image  # noqa: PLC0415 - slow to import; comes with torchvision

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image


def _require_size(image: Any, size: tuple[int, int] | None) -> None:
    """Raise for an image whose header gives another size, or too many pixels."""
    if size is not None and (image.height, image.width) != size:
        raise ValueError(f"it has {image.height} x {image.width} pixels, not {size[0]} x {size[1]}")
    if image.height * image.width > MOST_PIXELS:
        raise ValueError(
            f"it has {image.height:,} x {image.width:,} pixels, more than the {MOST_PIXELS:,} that are decoded"
        )


def _to_rgb(image: Any) -> Any:
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PNG"):  # older Pillow's grey PNG
        levels = np.asarray(image).astype(np.int64) >> 8
        return _pillow().fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        if (lowest := image.getchannel("A").getextrema()[0]) < 255:
            raise ValueError(f"it is transparent in places (alpha down to {lowest} of 255); flatten it first")
        return image.convert("RGB")
    if image.mode not in _DIRECT:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}; give 8 or 16 bits a channel")
    return image.convert("RGB")
