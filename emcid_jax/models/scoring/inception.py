"""InceptionV3 as FID uses it: TensorFlow's network of 2015-12-05, without its classifier.

Its pooling differs from torchvision's `inception_v3`: averages in the mixed blocks leave the
padding out, and the last block takes a maximum. Names on disk are those of the published
`pt_inception-2015-12-05-6726825d.pth` (pytorch-fid, torch-fidelity), which are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from emcid_jax.models import layers
from emcid_jax.models.weights.params import abstract_params, read_params
from emcid_jax.runtime.errors import UserError

SIZE = 299
"""Height and width of the images it was trained on."""
DIM = 2048
"""Length of its features."""
LEAST = 75
"""Smallest height and width that its strides leave anything of."""
_EPSILON = 1e-3

Size = tuple[int, int]
Step = tuple[str, int, Size]
"""Name, channels and kernel of a convolution that keeps height and width."""


def disk_name(stored: str) -> str | None:
    """Name expected here of a tensor on disk, None for what features do not need."""
    unused = stored.startswith(("fc.", "AuxLogits.")) or stored.endswith(".num_batches_tracked")
    return None if unused else stored


def read_inception(file: Path) -> dict[str, Any]:
    """Parameters from a `.safetensors` file. UserError for a pickled or unfit one."""
    if file.suffix in (".pth", ".pt"):
        target = file.with_suffix(".safetensors").name
        raise UserError(
            f"{file}: pickled weights are not read; convert them where PyTorch is installed: "
            'python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load('{file.name}', weights_only=True), '{target}')\""
        )
    if not file.is_file():
        raise UserError(f"{file}: no such file; give InceptionV3's weights as .safetensors")
    pixels = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return read_params(file, abstract_params(InceptionV3(), pixels), disk_name)


class Normalise(layers.Layer):
    """Batch norm with the statistics of training (`bn` on disk)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "image height width channel"]
    ) -> Float[Array, "image height width channel"]:
        """Each channel less its mean, over its deviation, scaled and shifted."""
        shape = (x.shape[-1],)
        mean = self.param("running_mean", nn.initializers.zeros, shape)
        variance = self.param("running_var", nn.initializers.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        factor = scale * jax.lax.rsqrt(variance + _EPSILON)
        return (x - mean) * factor + bias


class Convolution(nn.Module):
    """Convolution without bias, norm, ReLU."""

    channels: int
    kernel: Size = (1, 1)
    stride: int = 1
    padding: Literal["SAME", "VALID"] = "VALID"

    @nn.compact
    def __call__(
        self, x: Float[Array, "image height width channel"]
    ) -> Float[Array, "image height_out width_out channel_out"]:
        """Features of the next layer."""
        conv = layers.Conv(
            self.channels,
            self.kernel,
            (self.stride, self.stride),
            self.padding,
            use_bias=False,
            name="conv",
        )
        return nn.relu(Normalise(name="bn")(conv(x)))


def _chain(x: Array, steps: Sequence[Step]) -> Array:
    """One convolution after the other, in the module that calls this."""
    for name, channels, kernel in steps:
        x = Convolution(channels, kernel, padding="SAME", name=name)(x)
    return x


def _halved(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _average(x: Array) -> Array:
    """Over the neighbours that lie inside the image."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


class MixedA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3 and a pool side by side."""

    pooled: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Branches, channel after channel."""
        one, three, five = (1, 1), (3, 3), (5, 5)
        return jnp.concatenate(
            [
                _chain(x, [("branch1x1", 64, one)]),
                _chain(x, [("branch5x5_1", 48, one), ("branch5x5_2", 64, five)]),
                _chain(
                    x,
                    [
                        ("branch3x3dbl_1", 64, one),
                        ("branch3x3dbl_2", 96, three),
                        ("branch3x3dbl_3", 96, three),
                    ],
                ),
                _chain(_average(x), [("branch_pool", self.pooled, one)]),
            ],
            -1,
        )


class MixedB(nn.Module):
    """35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Branches, channel after channel."""
        double = _chain(x, [("branch3x3dbl_1", 64, (1, 1)), ("branch3x3dbl_2", 96, (3, 3))])
        return jnp.concatenate(
            [
                Convolution(384, (3, 3), 2, name="branch3x3")(x),
                Convolution(96, (3, 3), 2, name="branch3x3dbl_3")(double),
                _halved(x),
            ],
            -1,
        )


class MixedC(nn.Module):
    """17 x 17: convolutions of seven by one and one by seven."""

    inner: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Branches, channel after channel."""
        one, wide, high, inner = (1, 1), (1, 7), (7, 1), self.inner
        return jnp.concatenate(
            [
                _chain(x, [("branch1x1", 192, one)]),
                _chain(
                    x,
                    [
                        ("branch7x7_1", inner, one),
                        ("branch7x7_2", inner, wide),
                        ("branch7x7_3", 192, high),
                    ],
                ),
                _chain(
                    x,
                    [
                        ("branch7x7dbl_1", inner, one),
                        ("branch7x7dbl_2", inner, high),
                        ("branch7x7dbl_3", inner, wide),
                        ("branch7x7dbl_4", inner, high),
                        ("branch7x7dbl_5", 192, wide),
                    ],
                ),
                _chain(_average(x), [("branch_pool", 192, one)]),
            ],
            -1,
        )


class MixedD(nn.Module):
    """17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Branches, channel after channel."""
        single = _chain(x, [("branch3x3_1", 192, (1, 1))])
        seven = _chain(
            x,
            [
                ("branch7x7x3_1", 192, (1, 1)),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
            ],
        )
        return jnp.concatenate(
            [
                Convolution(320, (3, 3), 2, name="branch3x3_2")(single),
                Convolution(192, (3, 3), 2, name="branch7x7x3_4")(seven),
                _halved(x),
            ],
            -1,
        )


class MixedE(nn.Module):
    """8 x 8: three by three, split into one by three beside three by one."""

    maximum: bool
    """Whether the pool takes a maximum: the released graph's last block does."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Branches, channel after channel."""
        single = _chain(x, [("branch3x3_1", 384, (1, 1))])
        double = _chain(x, [("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3))])
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.maximum else _average(x)
        return jnp.concatenate(
            [
                _chain(x, [("branch1x1", 320, (1, 1))]),
                _chain(single, [("branch3x3_2a", 384, (1, 3))]),
                _chain(single, [("branch3x3_2b", 384, (3, 1))]),
                _chain(double, [("branch3x3dbl_3a", 384, (1, 3))]),
                _chain(double, [("branch3x3dbl_3b", 384, (3, 1))]),
                _chain(pooled, [("branch_pool", 192, (1, 1))]),
            ],
            -1,
        )


class InceptionV3(nn.Module):
    """Images to FID's features."""

    @nn.compact
    def __call__(self, pixels: Float[Array, "image height width 3"]) -> Float[Array, "image 2048"]:
        """Means over all places of the last block; pixels are (bytes - 128) / 128.

        Raises:
            ValueError: images smaller than `LEAST`.
        """
        if min(pixels.shape[1:3]) < LEAST:
            raise ValueError(f"images are {pixels.shape[1:3]}; give at least {LEAST} x {LEAST}")
        x = Convolution(32, (3, 3), 2, name="Conv2d_1a_3x3")(pixels)
        x = Convolution(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = Convolution(64, (3, 3), padding="SAME", name="Conv2d_2b_3x3")(x)
        x = Convolution(80, name="Conv2d_3b_1x1")(_halved(x))
        x = Convolution(192, (3, 3), name="Conv2d_4a_3x3")(x)
        x = _halved(x)
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = MixedA(pooled, name=name)(x)
        x = MixedB(name="Mixed_6a")(x)
        for name, inner in (
            ("Mixed_6b", 128),
            ("Mixed_6c", 160),
            ("Mixed_6d", 160),
            ("Mixed_6e", 192),
        ):
            x = MixedC(inner, name=name)(x)
        x = MixedD(name="Mixed_7a")(x)
        x = MixedE(False, name="Mixed_7b")(x)
        return MixedE(True, name="Mixed_7c")(x).mean((1, 2))
