"""From the bytes of an image file to pixels of one size, and from tensors to PNG.

An image of other proportions is letter-boxed, never stretched or cropped: the heart's width over
the thorax's is a diagnosis, and so is fluid in a corner that a crop would cut off. Grey levels of
16 bits and of floating point carry no window, so each such image is spread from its .1st to its
99.9th percentile; 8 bits are taken as they are.
"""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SMALLEST, LARGEST = 28, 256  # pixels a side that the networks are made for
FILE_BYTES = 64 << 20
PIXELS = 50_000_000  # a mammogram has 24 million; a decompression bomb has far more
TOO_LARGE = "the file has more than 64 MB"
SPREAD = (0.1, 99.9)  # percentiles that become black and white where no window is known


class Unreadable(Exception):  # noqa: N818
    """Why an image is set aside, as one sentence without the file's name."""


def pixels(data: bytes, channels: int, size: int) -> np.ndarray:
    """(C*S*S,) uint8, channel first, of a PNG, JPEG or TIFF file."""
    return fit(load(data, size), channels, size)


def array_pixels(picture: np.ndarray, channels: int, size: int) -> np.ndarray:
    """An image that is decoded already, (H, W) or (H, W, C) uint8, as `pixels` gives it."""
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[:, :, 0]
    if picture.shape == (size, size) and channels == 1:
        return picture.reshape(-1)
    image = Image.fromarray(picture)
    if channels == 1 and image.mode == "RGB":
        image = grey(image)
    return fit(image, channels, size)


def load(data: bytes, size: int | None = None) -> Image.Image:
    """An upright image of mode L or RGB; one whose three channels are equal is L.

    With `size` a JPEG that is many times larger is decoded at a fraction of its resolution, never
    below twice `size`.
    """
    if not data:
        raise Unreadable("the file is empty")
    if len(data) > FILE_BYTES:
        raise Unreadable(TOO_LARGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to refuse an image
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _load(io.BytesIO(data), size)
    except Unreadable:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable(f"the image has more than {PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        raise Unreadable("the file is not a PNG, JPEG, TIFF or DICOM image") from None
    except Exception:
        raise Unreadable("the image is damaged or breaks off") from None


def _load(file: io.BytesIO, size: int | None) -> Image.Image:
    image: Image.Image = Image.open(file, formats=("PNG", "JPEG", "TIFF"))
    if image.width * image.height > PIXELS:  # told by the header, before anything is decoded
        raise Unreadable(f"the image has more than {PIXELS // 10**6} million pixels")
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        raise Unreadable("the file holds several images; one image a file is read")
    if image.format == "JPEG" and size is not None:
        image.draft(None, (2 * size, 2 * size))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(spread(np.asarray(image).astype(np.float32)))
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("LA", "RGBA", "La", "RGBa"):
        if image.getchannel(image.mode[-1]).getextrema()[0] < 255:  # type: ignore[operator]
            raise Unreadable("the image has transparent pixels")
        image = image.convert("L" if image.mode[0] == "L" else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return grey(image) if image.mode == "RGB" else image


def grey(image: Image.Image) -> Image.Image:
    """A colour image whose channels are equal is a grey one, as many exports of films are."""
    red, green, blue = image.split()
    data = red.tobytes()
    return red if data == green.tobytes() and data == blue.tobytes() else image


def spread(
    levels: np.ndarray,
    part: np.ndarray | None = None,
    percentiles: tuple[float, float] = SPREAD,
) -> np.ndarray:
    """Grey levels without a window as uint8.

    Args:
        part: a mask; only the levels there say what becomes black and white.
        percentiles: of these levels, that become black and white.
    """
    seen = levels.reshape(-1) if part is None or not part.any() else levels[part]
    if not np.isfinite(levels).all():
        raise Unreadable("the image holds NaN or infinite values")
    sample = seen[:: max(1, seen.size >> 20)]  # a million pixels tell as much
    low, high = np.percentile(sample, percentiles)
    if high <= low:
        low, high = float(seen.min()), float(seen.max())
    scaled = (levels - low) * (255.0 / max(high - low, 1e-30))
    grey: np.ndarray = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return grey


def fit(image: Image.Image, channels: int, size: int) -> np.ndarray:
    """(C*S*S,) uint8, channel first, of an image of mode L or RGB."""
    if channels == 1 and image.mode == "RGB":
        raise Unreadable("the image is in colour where the data set is grey (channels=1)")
    image = _letterbox(image, size)
    if channels == 3:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1).reshape(-1)
    return np.asarray(image).reshape(-1)


def _letterbox(image: Image.Image, size: int) -> Image.Image:
    """The whole image, its proportions kept, in the middle of a black square."""
    if image.size == (size, size):
        return image
    scale = size / max(image.size)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(inner, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if inner == (size, size):
        return image
    square = Image.new(image.mode, (size, size))
    square.paste(image, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return square


def png(image: Tensor) -> bytes:
    """(C, H, W) in [-1, 1], one or three channels."""
    levels = image.detach().to("cpu", torch.float32).clamp(-1, 1).add(1).mul(127.5).round()
    array = levels.to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, "PNG")
    return file.getvalue()


def grid(images: Tensor, columns: int) -> bytes:
    """(N, C, H, W) in [-1, 1] row by row, with two black pixels between."""
    number, channels, height, width = images.shape
    rows, gap = math.ceil(number / columns), 2
    high, wide = rows * (height + gap) - gap, columns * (width + gap) - gap
    sheet = torch.full((channels, max(high, 1), max(wide, 1)), -1.0)
    for place, image in enumerate(images.detach().cpu()):
        top, left = (place // columns) * (height + gap), (place % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return png(sheet)
