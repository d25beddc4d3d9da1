"""LPIPS 0.1 on AlexNet: how different two images look (Zhang et al., arXiv 1801.03924).

Features of five layers are scaled to length 1 at every place, their squared differences weighted
per channel by learned weights, averaged over places and added up over layers. Names on disk are
those of `lpips.LPIPS(net="alex").state_dict()`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from emcid_jax.models import layers
from emcid_jax.models.weights.params import abstract_params, read_params
from emcid_jax.runtime.errors import UserError

LEAST = 31
"""Smallest height and width that AlexNet's strides leave anything of."""
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


def disk_name(stored: str) -> str | None:
    """Name expected here of a tensor on disk; None for second copies and constants."""
    return None if stored.startswith(("lins.", "scaling_layer.")) else stored


def read_lpips(file: Path) -> dict[str, Any]:
    """Parameters from a `.safetensors` file of the whole model. UserError for an unfit one."""
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(
            f"{file}: no .safetensors file; write one where the package lpips is installed: "
            'python -c "import lpips, safetensors.torch as s; '
            "d = lpips.LPIPS(net='alex').state_dict(); "
            "s.save_file({k: v.clone() for k, v in d.items()}, 'lpips_alex.safetensors')\""
        )
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return read_params(file, abstract_params(Lpips(), pixels, pixels), disk_name)


class Lpips(nn.Module):
    """Pairs of images to distances."""

    @nn.compact
    def __call__(
        self,
        first: Float[Array, "image height width 3"],
        second: Float[Array, "image height width 3"],
    ) -> Float[Array, " image"]:
        """Distances, >= 0 with the published weights, of images in [-1, 1].

        Raises:
            ValueError: images smaller than `LEAST`.
        """
        if min(first.shape[1:3]) < LEAST:
            raise ValueError(f"images are {first.shape[1:3]}; give at least {LEAST} x {LEAST}")
        x = (jnp.concatenate([first, second]) - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        total = jnp.zeros(len(first))
        for layer, (name, channels, kernel, stride, padding, pooled) in enumerate(
            (
                ("net.slice1.0", 64, 11, 4, 2, False),
                ("net.slice2.3", 192, 5, 1, 2, True),
                ("net.slice3.6", 384, 3, 1, 1, True),
                ("net.slice4.8", 256, 3, 1, 1, False),
                ("net.slice5.10", 256, 3, 1, 1, False),
            )
        ):
            if pooled:
                x = nn.max_pool(x, (3, 3), (2, 2))
            x = nn.relu(
                layers.Conv(channels, (kernel, kernel), (stride, stride), padding, name=name)(x)
            )
            unit = x / (jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)) + _EPSILON)
            apart = jnp.square(unit[: len(first)] - unit[len(first) :])
            weighted = layers.Conv(1, (1, 1), use_bias=False, name=f"lin{layer}.model.1")(apart)
            total += weighted.mean((1, 2, 3))
        return total
