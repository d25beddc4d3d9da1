"""Convolutions. CPUs take ways of their own: XLA's take them twice as long, or more.

Where pixels are few, one product of all patches with the kernel. Elsewhere Winograd's F(2x2, 3x3)
(Lavin & Gray 2015): 16 products give four pixels, in place of 36, and differ from a convolution by
rounding (1e-6 of the largest value). Either way the backward pass is the same kind of convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from emcid_jax.runtime.parallel import even_chunk

FEW_PIXELS = 384
"""Up to so many, transforming the kernel costs more than it saves."""
WIDE = 2**16
"""Channels in times out from which on Winograd's way is worth a longer compilation."""
TILES = 2048
"""Tiles of one band: what exists of it at once stays near the cores."""
_TURNED = (3, 1, 2, 0)
"""Rows of `G k` in the order of `G` applied to the kernel turned round."""


def _is_faster(
    x: Float[Array, "batch height width channel"], kernel: Float[Array, "3 3 channel out"]
) -> bool:
    """Whether `_convolve_3x3` is, on a CPU."""
    *_, channels, out = kernel.shape
    return x.dtype == jnp.float32 and (_few_pixels(x, out) or channels * out >= WIDE)


def _convolve_3x3(
    x: Float[Array, "batch height width channel"], kernel: Float[Array, "3 3 channel out"]
) -> Float[Array, "batch height width out"]:
    """Padded by 1 on every side, stride 1."""
    if _few_pixels(x, kernel.shape[-1]):
        return _product_of_patches(x, kernel)
    return _winograd(x, kernel)


def _few_pixels(x: Array, out: int) -> bool:
    return math.prod(x.shape[:3]) <= min(FEW_PIXELS, out)


def _product_of_patches(x: Array, kernel: Array) -> Array:
    batch, height, width, channels = x.shape
    out = kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    patches = jnp.concatenate(shifted, -1).reshape(-1, 9 * channels)
    return (patches @ kernel.reshape(-1, out)).reshape(batch, height, width, out)


@jax.custom_vjp
def _winograd(x: Array, kernel: Array) -> Array:
    return _in_bands(x, _kernel_tiles(kernel), contracted=0)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _winograd(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], change: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # The kernel turned round, from `out` to `channel`: the forward pass's matrices in another
    # order, which XLA computes once for both, and no transposed copy of them.
    tiles = _kernel_tiles(kernel)
    turned = [tiles[4 * row + column] for row in _TURNED for column in _TURNED]
    back = _in_bands(change, turned, contracted=1)

    def convolution(kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    _, pullback = jax.vjp(convolution, kernel)  # Only training asks for it.
    return back, *pullback(change)


_winograd.defvjp(_forward, _backward)


def _in_bands(x: Array, kernel: list[Array], contracted: int) -> Array:
    """Convolution of some rows at a time. `contracted` is the kernel's axis that `x` has."""
    batch, height, width = x.shape[:3]
    down, across = -(-height // 2), -(-width // 2)
    rows = even_chunk(down, max(1, TILES // (batch * across)))
    bands = -(-down // rows)
    bottom, right = 1 + 2 * bands * rows - height, 1 + 2 * across - width
    padded = jnp.pad(x, ((0, 0), (1, bottom), (1, right), (0, 0)))
    if bands == 1:
        return _tiles(padded, kernel, contracted)[:, :height, :width]

    def band(first: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(padded, first, 2 * rows + 2, axis=1)
        return _tiles(part, kernel, contracted)

    found = jax.lax.map(band, 2 * rows * jnp.arange(bands))
    whole = jnp.moveaxis(found, 0, 1).reshape(batch, 2 * bands * rows, 2 * across, -1)
    return whole[:, :height, :width]


def _tiles(padded: Array, kernel: list[Array], contracted: int) -> Array:
    """`A^T (U . B^T d B) A` for every tile d of 4 x 4 pixels, two apart."""
    batch, down, across = padded.shape[0], padded.shape[1] // 2 - 1, padded.shape[2] // 2 - 1
    products = []
    for row in _four(*(padded[:, i : i + 2 * down - 1 : 2] for i in range(4))):
        for tile in _four(*(row[:, :, j : j + 2 * across - 1 : 2] for j in range(4))):
            factor = kernel[len(products)]
            products.append(jax.lax.dot_general(tile, factor, (((3,), (contracted,)), ((), ()))))
    pairs = [_two(*products[i : i + 4]) for i in range(0, 16, 4)]
    left, right = (_two(*column) for column in zip(*pairs, strict=True))
    pixels = [jnp.stack(row, axis=3) for row in zip(left, right, strict=True)]
    return jnp.stack(pixels, axis=2).reshape(batch, 2 * down, 2 * across, -1)


def _kernel_tiles(kernel: Array) -> list[Array]:
    """`U = G k G^T`, 16 matrices by rows."""
    return [tile for row in _three_to_four(*kernel) for tile in _three_to_four(*row)]


def _four(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array, Array, Array]:
    """`B^T` applied."""
    return a - c, b + c, c - b, b - d


def _two(a: Array, b: Array, c: Array, d: Array) -> tuple[Array, Array]:
    """`A^T` applied."""
    return a + b + c, b - c - d


def _three_to_four(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array, Array]:
    """`G` applied."""
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def convolve(
    x: Float[Array, "batch height width channel"],
    kernel: Float[Array, "3 3 channel out"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "batch new_height new_width out"]:
    """`jax.lax.conv_general_dilated`, padded by 1; by another way where a CPU computes."""

    def convolution(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    if max(strides) > 1 or not _is_faster(x, kernel):
        return convolution(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_convolve_3x3, default=convolution)


def pointwise(
    x: Float[Array, "batch height width channel"],
    kernel: Float[Array, "1 1 channel out"],
    *_: Any,
    precision: Any = None,
    **__: Any,
) -> Float[Array, "batch height width out"]:
    """As the product that it is: CPUs take a third less than for the convolution, both ways."""
    return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0], precision=precision)
