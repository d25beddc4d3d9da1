"""Draws a `Picture` at 64 x 64 pixels: scene or canvas first, then the object or figure on it.

Objects are signed distance fields sampled at a jittered place and size, so that outline, shadow and
texture come from one table per shape. Only place, size and light are random.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from emcid_jax.sprites.catalogue import ART, HATS, Look, Picture, Style
from emcid_jax.sprites.silhouettes import FIELD, distance_field

SIZE = 64
_INK = np.array([38, 34, 44.0])
_FILL = np.array(
    [
        (214, 44, 50), (244, 132, 26), (250, 212, 50), (52, 160, 66), (72, 206, 226),
        (40, 92, 214), (134, 66, 186), (246, 138, 190), (126, 78, 42), (66, 68, 78),
    ],
    dtype=float,
)  # fmt: skip
_PALETTE = np.array(
    [
        [(226, 200, 160), (128, 84, 44)], [(246, 190, 200), (196, 40, 84)],
        [(255, 206, 120), (222, 112, 16)], [(208, 206, 120), (104, 108, 24)],
        [(180, 232, 186), (30, 132, 76)], [(140, 214, 208), (10, 104, 112)],
        [(172, 206, 248), (36, 88, 186)], [(210, 186, 244), (110, 52, 176)],
        [(196, 196, 200), (64, 64, 70)], [(36, 48, 104), (226, 190, 84)],
        [(104, 24, 40), (240, 150, 170)],
    ],
    dtype=float,
)  # fmt: skip
_ART_PALETTE = np.array([(246, 244, 240), (206, 204, 200)], dtype=float)
_HAIR = np.array([92, 58, 34.0])
_SKIN = np.array([236, 190, 156.0])

_GRID = np.stack(np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5))


def _mix(base: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return base + alpha[..., None] * (colour - base)


def _edge(distance: np.ndarray) -> np.ndarray:
    """Anti-aliased coverage of `distance < 0` with distances in pixels."""
    return np.clip(0.5 - distance, 0, 1)


def _texture(texture: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coverage of the second tone; x and y in pixels from the object's centre."""
    match texture:
        case 1:
            return _edge(np.abs((x + y) / np.sqrt(2) % 10 - 5) - 2.4)
        case 2:
            row = np.floor(y / 9 + 0.5)
            return _edge(np.hypot((x + 4.5 * (row % 2) + 4.5) % 9 - 4.5, y - 9 * row) - 2.7)
        case 3:
            u, v = x / 7.5, y / 7.5
            return ((np.floor(u) + np.floor(v)) % 2).astype(float)
        case 4:
            return _edge(np.abs((np.hypot(x, y) + 1) % 10 - 5) - 2.4)
    return np.zeros_like(x)


def _object(image: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    half = 21.5 * rng.uniform(0.93, 1.07)
    cx, cy = SIZE / 2 + rng.uniform(-3, 3, size=2) + np.array([0, 1.0])
    x, y = _GRID[0] - cx, _GRID[1] - cy
    # Two reads of one field: the body, and its shadow a little lower.
    where = np.stack([y, x]) / (half / 0.7) * (FIELD / 2) + FIELD / 2 - 0.5
    drop = np.array([3.0, 1.5])[:, None, None] / (half / 0.7) * (FIELD / 2)
    field = distance_field(look.shape)
    body = ndimage.map_coordinates(field, where, order=1, mode="nearest") * half
    shade = ndimage.map_coordinates(field, where - drop, order=1, mode="nearest") * half
    fill = _FILL[look.colour]
    second = fill + 0.68 * (255 - fill) if look.colour not in (2, 4, 7) else fill * 0.45
    image = _mix(image, _INK, 0.3 * np.clip(0.5 - shade / 3, 0, 1))
    image = _mix(image, np.full(3, 255.0), _edge(body - 2.6))
    image = _mix(image, _INK, _edge(body - 1.3))
    colour = _mix(np.broadcast_to(fill, image.shape), second, _texture(look.texture, x, y))
    return _mix(image, colour, _edge(body + 0.8))


def _ground(top: tuple, bottom: tuple, horizon: int, floor: tuple) -> np.ndarray:
    """Vertical gradient down to `horizon` px, then a flat floor."""
    y = _GRID[1]
    ramp = np.clip(y / horizon, 0, 1)
    sky = _mix(
        np.broadcast_to(np.array(top, float), (SIZE, SIZE, 3)), np.array(bottom, float), ramp
    )
    return _mix(sky, np.array(floor, float), _edge(horizon - y))


def _scene(scene: int, rng: np.random.Generator) -> np.ndarray:
    x, y = _GRID
    match scene:
        case 1:
            image = _ground((110, 190, 240), (214, 240, 250), 30, (60, 150, 200))
            image = _mix(image, np.array([240, 220, 168.0]), _edge(42 + 1.5 * np.sin(x / 5) - y))
            return _mix(image, np.array([255, 236, 120.0]), _edge(np.hypot(x - 54, y - 9) - 6))
        case 2:
            image = _ground((176, 190, 214), (222, 230, 242), 40, (248, 250, 255))
            flakes = np.hypot((x + 5 * np.floor(y / 11)) % 13 - 6, y % 11 - 5) - 1.3
            return _mix(image, np.full(3, 255.0), _edge(flakes))
        case 3:
            image = _ground((150, 200, 160), (196, 224, 180), 46, (74, 110, 58))
            for base in (6, 22, 42, 58):
                image = _mix(image, np.array([98, 70, 46.0]), _edge(np.abs(x - base) - 2.4))
                crown = np.maximum(np.abs(x - base) - 0.5 * (y - 2), y - 24)
                image = _mix(image, np.array([34, 100, 60.0]), _edge(crown))
            return image
        case 4:
            image = _ground((14, 18, 48), (48, 40, 92), 50, (30, 28, 40))
            for left, top in ((1, 24), (13, 14), (25, 30), (38, 18), (51, 26)):
                wall = np.maximum(np.abs(x - left - 5.5) - 5, np.maximum(top - y, y - 50))
                image = _mix(image, np.array([34, 32, 58.0]), _edge(wall))
                lit = np.maximum(np.abs((x - left) % 4 - 2) - 0.8, np.abs(y % 5 - 2) - 0.9)
                image = _mix(image, np.array([255, 214, 110.0]), _edge(np.maximum(lit, wall + 2)))
            return image
        case 5:
            image = _ground((70, 170, 214), (14, 60, 130), 54, (180, 168, 120))
            bubbles = np.hypot((x + 4 * np.floor(y / 16)) % 18 - 9, y % 16 - 8)
            return _mix(image, np.array([196, 234, 250.0]), _edge(np.abs(bubbles - 2.6) - 0.7))
        case 6:
            image = _ground((140, 205, 250), (220, 242, 255), 34, (126, 196, 84))
            blooms = np.hypot((x + 6 * np.floor(y / 9)) % 12 - 6, y % 9 - 4) - 1.5
            return _mix(image, np.array([255, 240, 250.0]), _edge(np.maximum(blooms, 37 - y)))
        case 7:
            image = _ground((250, 150, 90), (255, 214, 140), 38, (214, 150, 84))
            image = _mix(image, np.array([190, 122, 64.0]), _edge(46 + 4 * np.sin(x / 9) - y))
            return _mix(image, np.array([255, 246, 200.0]), _edge(np.hypot(x - 12, y - 12) - 7))
    light = rng.uniform(-4, 4)
    return _ground((236 + light, 234 + light, 230 + light), (226, 224, 222), 50, (204, 200, 196))


def _stroke(stroke: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance (px, negative on the stroke) of the canvas pattern."""
    match stroke:
        case 0:
            return np.abs(y % 8 - 4) - 1.4
        case 1:
            return np.abs(x % 8 - 4) - 1.4
        case 2:
            return np.abs((x + y) / np.sqrt(2) % 9 - 4.5) - 1.5
        case 3:
            return np.abs((x - y) / np.sqrt(2) % 9 - 4.5) - 1.5
        case 4:
            return np.minimum(np.abs(x % 10 - 5), np.abs(y % 10 - 5)) - 1.1
        case 5:
            row = np.floor(y / 8)
            return np.hypot((x + 4 * (row % 2)) % 8 - 4, y % 8 - 4) - 2.3
        case 6:
            return np.abs((y + 2.5 * np.sin(x * np.pi / 8)) % 10 - 5) - 1.4
        case 7:
            return np.abs((y + np.abs(x % 12 - 6)) % 10 - 5) - 1.5
        case 8:
            row = np.floor(y / 8)
            joint = np.where(np.abs(y % 8 - 4) < 4, np.abs((x + 8 * (row % 2)) % 16 - 8), 9)
            return np.minimum(np.abs(y % 8 - 4), joint) - 1.1
    return np.abs(np.hypot(x, y) % 10 - 5) - 1.5


def _frame(image: np.ndarray, frame: int) -> np.ndarray:
    x, y = _GRID
    inset = np.minimum(np.minimum(x, SIZE - x), np.minimum(y, SIZE - y))
    along = np.where(np.minimum(x, SIZE - x) < np.minimum(y, SIZE - y), y, x)
    ink, gold, white = _INK, np.array([212, 164, 40.0]), np.full(3, 252.0)
    match frame:
        case 0:
            return _mix(image, ink, _edge(inset - 5))
        case 1:
            return _mix(_mix(image, ink, _edge(inset - 6)), gold, _edge(inset - 5))
        case 2:
            image = _mix(image, white, _edge(inset - 6))
            return _mix(image, ink, _edge(np.abs(np.abs(inset - 3) - 2) - 0.9))
        case 3:
            image = _mix(image, white, _edge(inset - 5))
            return _mix(image, ink, _edge(np.maximum(inset - 4, np.abs(along % 12 - 6) - 3)))
        case 4:
            image = _mix(image, ink, _edge(inset - 6))
            return _mix(image, white, _edge(np.hypot(along % 8 - 4, inset - 3) - 2.3))
        case 5:
            image = _mix(image, white, _edge(inset - 5))
            blocks = np.maximum(inset - 5, np.abs(along % 16 - 8) - 4)
            return _mix(image, np.array([206, 34, 40.0]), _edge(blocks))
        case 6:
            corner = np.minimum(x, SIZE - x) + np.minimum(y, SIZE - y) - 15
            return _mix(image, ink, _edge(corner))
        case 7:
            return _mix(image, ink, _edge(np.minimum(y, SIZE - y) - 7))
        case 8:
            return _mix(image, ink, _edge(np.minimum(x, SIZE - x) - 7))
        case 9:
            image = _mix(image, white, _edge(inset - 5))
            return _mix(image, np.array([96, 96, 110.0]), _edge(np.minimum(SIZE - x, SIZE - y) - 6))
    return _mix(image, np.array([170, 168, 164.0]), _edge(inset - 1.5))


def _canvas(style: Style, motif: bool) -> np.ndarray:
    """A painted ground; with `motif`, hills and a sun stand where nothing else is painted."""
    light, dark = _ART_PALETTE if style == ART else _PALETTE[style.palette]
    x, y = _GRID
    image = np.broadcast_to(light, (SIZE, SIZE, 3))
    if motif:
        tone = 0.55 * light + 0.45 * dark
        hills = np.minimum(40 + 0.03 * (x - 20) ** 2, 46 + 0.02 * (x - 50) ** 2) - y
        image = _mix(image, tone, np.maximum(_edge(hills), _edge(np.hypot(x - 44, y - 20) - 8)))
    if style.stroke >= 0:
        image = _mix(image, dark, 0.9 * _edge(_stroke(style.stroke, x - 32, y - 32)))
    return _frame(image, style.frame)


def _figure(
    image: np.ndarray, profession: int, gender: int, rng: np.random.Generator
) -> np.ndarray:
    """A person: dress and long hair, or trousers and short hair; outfit and hat by profession."""
    cx, top = SIZE / 2 + rng.uniform(-2, 2), 9 + rng.uniform(-1, 1)
    x, y = _GRID[0] - cx, _GRID[1] - top
    outfit, hat = _FILL[profession % 10], profession // 10
    head = np.hypot(x, y - 9) - 7
    if gender == 0:
        body = np.maximum(np.abs(x) - 3 - 0.36 * (y - 14), np.maximum(15 - y, y - 44))
        legs = np.maximum(np.abs(np.abs(x) - 4) - 2, np.maximum(42 - y, y - 51))
        hair = np.minimum(np.hypot(x, y - 8) - 8.5, np.maximum(np.abs(x) - 9, np.abs(y - 14) - 8))
        legs_ink = _SKIN
    else:
        body = np.maximum(np.abs(x) - 9.5, np.maximum(15.5 - y, y - 33))
        legs = np.maximum(np.abs(np.abs(x) - 4.6) - 3.6, np.maximum(30 - y, y - 51))
        hair = np.maximum(np.hypot(x, y - 8) - 8.2, y - 8)
        legs_ink = _INK + 24
    arms = np.maximum(np.abs(np.abs(x) - 12) - 2.2, np.maximum(17 - y, y - 33))
    if gender == 0:
        image = _mix(image, _HAIR, _edge(hair))
    outline = np.minimum(np.minimum(head, body), np.minimum(legs, arms))
    image = _mix(image, _INK, _edge(outline - 1.2))
    image = _mix(image, _SKIN, _edge(np.minimum(head, arms)))
    image = _mix(image, legs_ink, _edge(legs))
    image = _mix(image, outfit, _edge(body))
    fringe = np.maximum(np.hypot(x, y - 9) - 7.8, y - 6) if gender == 0 else hair
    image = _mix(image, _HAIR, _edge(fringe))
    for dx in (-2.6, 2.6):
        image = _mix(image, _INK, _edge(np.hypot(x - dx, y - 9.5) - 1.0))
    match HATS[hat]:
        case "cap":
            crown = np.maximum(np.hypot(x, y - 6) - 8.5, y - 5)
            peak = np.maximum(np.abs(x - 6) - 8, np.abs(y - 4.6) - 1.4)
            image = _mix(image, np.array([250, 250, 250.0]), _edge(np.minimum(crown, peak)))
        case "brim":
            crown = np.maximum(np.abs(x) - 6, np.abs(y - 0.5) - 3.5)
            brim = np.maximum(np.abs(x) - 13, np.abs(y - 4.2) - 1.6)
            image = _mix(image, np.array([120, 76, 36.0]), _edge(np.minimum(crown, brim)))
        case "tall":
            hat_box = np.maximum(np.abs(x) - 7, np.abs(y + 1) - 6)
            image = _mix(image, _INK, _edge(hat_box))
            image = _mix(image, np.array([214, 44, 50.0]), _edge(np.maximum(hat_box, 2.4 - y)))
    return image


def draw(picture: Picture, rng: np.random.Generator) -> UInt8[np.ndarray, "64 64 3"]:
    """One image of `picture`; `rng` decides place, size and light only."""
    empty = picture.look is None and picture.profession is None
    if picture.style is not None:
        image = _canvas(picture.style, motif=empty)
    else:
        image = _scene(picture.scene, rng)
    if picture.look is not None:
        image = _object(image, picture.look, rng)
    if picture.profession is not None:
        gender = picture.gender
        if gender is None:
            raise ValueError("a figure needs a gender: draw one by the profession's female share")
        image = _figure(image, picture.profession, gender, rng)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def contact_sheet(
    images: UInt8[np.ndarray, "image 64 64 3"], columns: int, scale: int = 1
) -> Image.Image:
    """Images in reading order on a white sheet, 4 px apart, enlarged `scale` times."""
    rows = -(-len(images) // columns)
    cell = SIZE * scale + 4
    sheet = Image.new("RGB", (columns * cell + 4, rows * cell + 4), "white")
    for index, image in enumerate(images):
        tile = Image.fromarray(image).resize((SIZE * scale, SIZE * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (4 + index % columns * cell, 4 + index // columns * cell))
    return sheet


def to_float(images: UInt8[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Bytes to [-1, 1]."""
    return images.astype(np.float32) / 127.5 - 1
