"""The silhouettes of the world's 20 shapes, as signed distance fields."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from scipy import ndimage

FIELD = 256
"""Side of a field in pixels; the shape's half size is 0.7 of half of it."""


def _regular(points: int, inner: float, turn: float = -np.pi / 2) -> list[tuple[float, float]]:
    """Star polygon with `points` tips on the unit circle and valleys at radius `inner`."""
    angles = turn + np.pi * np.arange(2 * points) / points
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))


def _outline(shape: int) -> Image.Image:
    """The filled silhouette of a shape on a `FIELD` px square, drawn at 4 x and reduced."""
    scale = FIELD * 4
    image = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(image)

    def px(points):
        return [((x * 0.7 + 1) * scale / 2, (y * 0.7 + 1) * scale / 2) for x, y in points]

    def polygon(points, ink=255):
        pen.polygon(px(points), fill=ink)

    def disc(x, y, rx, ry=None, ink=255):
        ry = rx if ry is None else ry
        pen.ellipse([*px([(x - rx, y - ry)])[0], *px([(x + rx, y + ry)])[0]], fill=ink)

    def box(x0, y0, x1, y1, ink=255):
        polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], ink)

    match shape:
        case 0:
            disc(0, 0, 0.95)
        case 1:
            box(-0.85, -0.85, 0.85, 0.85)
        case 2:
            polygon([(0, -1), (1, 0.8), (-1, 0.8)])
        case 3:
            polygon(_regular(5, 0.42))
        case 4:
            disc(-0.46, -0.36, 0.52)
            disc(0.46, -0.36, 0.52)
            polygon([(-0.93, -0.14), (0.93, -0.14), (0, 1)])
        case 5:
            disc(0, 0, 0.98)
            disc(0.42, -0.2, 0.78, ink=0)
        case 6:
            box(-0.34, -1, 0.34, 1)
            box(-1, -0.34, 1, 0.34)
        case 7:
            disc(0, 0, 1)
            disc(0, 0, 0.46, ink=0)
        case 8:
            disc(0, 0.34, 0.66)
            polygon([(0, -1.05), (0.59, 0.06), (-0.59, 0.06)])
        case 9:
            for angle in -np.pi / 2 + 2 * np.pi * np.arange(5) / 5:
                disc(0.58 * np.cos(angle), 0.58 * np.sin(angle), 0.42)
            disc(0, 0, 0.4)
        case 10:
            disc(0, 0, 0.76)
            for angle in np.pi * np.arange(8) / 4:
                c, s = np.cos(angle), np.sin(angle)
                tooth = [(0.6, -0.2), (1.02, -0.15), (1.02, 0.15), (0.6, 0.2)]
                polygon([(x * c - y * s, x * s + y * c) for x, y in tooth])
            disc(0, 0, 0.26, ink=0)
        case 11:
            polygon(
                [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]
            )
        case 12:
            for x, y, r in [(-0.55, 0.2, 0.44), (0.0, -0.2, 0.55), (0.58, 0.16, 0.42)]:
                disc(x, y, r)
            box(-0.55, 0.1, 0.6, 0.62)
        case 13:
            polygon(
                [(0.3, -1), (-0.7, 0.14), (-0.08, 0.14), (-0.34, 1), (0.7, -0.24), (0.06, -0.24)]
            )
        case 14:
            polygon(
                [
                    (0, -1),
                    (1, -0.12),
                    (0.74, -0.12),
                    (0.74, 0.9),
                    (-0.74, 0.9),
                    (-0.74, -0.12),
                    (-1, -0.12),
                ]
            )
            box(-0.2, 0.34, 0.2, 0.9, ink=0)
        case 15:
            disc(-0.2, 0, 0.78, 0.52)
            polygon([(0.3, 0), (1, -0.6), (0.84, 0), (1, 0.6)])
        case 16:
            disc(0, -0.1, 0.98, 0.82)
            box(-1, -0.1, 1, 0.9, ink=0)
            box(-0.3, -0.12, 0.3, 0.9)
        case 17:
            polygon([(0, -1), (0.62, -0.2), (-0.62, -0.2)])
            polygon([(0, -0.6), (0.9, 0.56), (-0.9, 0.56)])
            box(-0.2, 0.5, 0.2, 1)
        case 18:
            polygon(
                [(-0.82, -0.95), (0.82, -0.95), (0.08, 0), (0.82, 0.95), (-0.82, 0.95), (-0.08, 0)]
            )
        case 19:
            disc(0.62, -0.06, 0.42)
            disc(0.62, -0.06, 0.2, ink=0)
            polygon([(-0.9, -0.7), (0.6, -0.7), (0.42, 0.8), (-0.72, 0.8)])
    return image.resize((FIELD, FIELD), Image.Resampling.LANCZOS)


@functools.cache
def distance_field(shape: int) -> Float[np.ndarray, "row column"]:
    """Signed distance (negative inside) in units of the shape's half size, `FIELD` px square."""
    inside = np.asarray(_outline(shape)) > 127
    outside, within = (np.asarray(ndimage.distance_transform_edt(m)) for m in (~inside, inside))
    return (outside - within) / (0.7 * FIELD / 2)
