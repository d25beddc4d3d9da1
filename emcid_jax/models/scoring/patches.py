"""What image towers share: their config's image fields, and images as tokens."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array
from jaxtyping import DTypeLike, Float

from emcid_jax.models import layers
from emcid_jax.models.text.transformer import BlockConfig
from emcid_jax.models.weights.diffusers_config import Channels, Pixels
from emcid_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageTowerConfig(BlockConfig):
    """The fields of a `config.json` that size a transformer over the patches of an image."""

    image_size: Pixels
    """Height and width of the input in pixels."""
    patch_size: Pixels
    """Height and width of a patch in pixels."""
    num_channels: Channels
    """Channels of the input."""

    def check(self, source: object) -> None:
        """Raise `UserError`, naming `source` and field, if the fields do not fit together."""
        super().check(source)
        if self.image_size % self.patch_size:
            raise UserError(
                f"{source}: image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )

    def require_colour(self, source: object) -> None:
        """Raise `UserError`, naming `source`, unless the images have three channels."""
        if self.num_channels != 3:
            raise UserError(f"{source}: num_channels is {self.num_channels}; images have 3")

    def check_images(self, pixels: Float[Array, "image height width channel"]) -> None:
        """Raise `ValueError` unless the images have the config's size."""
        wanted = (self.image_size, self.image_size, self.num_channels)
        if pixels.shape[1:] != wanted:
            raise ValueError(f"images are {pixels.shape[1:]}; the model takes {wanted}")


def patch_tokens(
    pixels: Float[Array, "image height width channel"],
    first: Float[Array, " dim"],
    patch_size: int,
    *,
    bias: bool,
    name: str,
    dtype: DTypeLike,
) -> Float[Array, "image token dim"]:
    """Token `first`, then every patch, row by row, through one linear map.

    That map is the convolution `name` of the module that calls this.
    """
    (dim,), patch = first.shape, (patch_size, patch_size)
    convolution = layers.Conv(
        dim, patch, strides=patch, padding="VALID", use_bias=bias, dtype=dtype, name=name
    )
    patches = convolution(pixels).reshape(len(pixels), -1, dim)
    first_tokens = jnp.broadcast_to(first.astype(dtype), (len(pixels), 1, dim))
    return jnp.concatenate([first_tokens, patches], axis=1)
