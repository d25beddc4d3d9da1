"""Pictures that a user names: decoded whole, within a size limit, to what a viewer shows."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import open_to_read

MOST_PIXELS = 2**26
"""Of a picture: 8,192 x 8,192. Decoded it takes 192 MiB."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded. Pillow knows more, one of which runs a program (EPS)."""
_STILL = "give a PNG or JPEG file"


def read_picture(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """The picture in a file as 8-bit RGB.

    It is turned as its EXIF orientation says. Transparent pixels lie on white, 16 bits are rounded
    to 8, and colours of a palette or of CMYK become RGB.

    Raises:
        UserError: it is missing, no picture, larger than MOST_PIXELS, damaged, animated, or of
            numbers that are no brightness. The message begins with the path.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), open_to_read(path) as file:
            warnings.simplefilter("ignore")  # What matters raises.
            with Image.open(file, formats=FORMATS) as image:
                _require_still(path, image)
                return np.asarray(_as_rgb(path, ImageOps.exif_transpose(image)))
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; correct the path") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: has more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: is not an image; {_STILL}") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        reasons = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: cannot be read ({reasons.splitlines()[0]}); {_STILL}") from error


def _require_still(path: Path, image: Any) -> None:
    """UserError for too many pixels or frames, before any of them is decoded."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UserError(
            f"{path}: has {width:,} x {height:,} pixels; make it smaller ({MOST_PIXELS:,} at most)"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # Cameras add a preview to a JPEG so.
        raise UserError(f"{path}: has {frames} frames; give a file of one picture")


def _as_rgb(path: Path, image: Any) -> Any:
    from PIL import Image

    if image.mode in ("F", "I"):
        raise UserError(
            f"{path}: holds numbers of 32 bits, not brightness of 8 or 16; save it as 8 bits"
        )
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
