"""flax's layers, without a trace of an initialiser for each parameter that is already there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from flax import linen as nn


class Layer(nn.Module):
    """A module with parameters of its own."""

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *init_args: Any, **how: Any) -> Any:
        """As flax's; `init_args` begin with the shape.

        flax traces `init_fn` at every use of the parameter, to compare the shapes: more than a
        quarter of the time to trace a UNet. All initialisers here give the shape that they are
        asked for.

        Raises:
            flax.errors.ScopeParamShapeError: The parameter has another shape.
        """
        if self.has_variable("params", name):
            value = self.get_variable("params", name)
            if np.shape(value) == init_args[0]:
                return value
        return super().param(name, init_fn, *init_args, **how)


@no_type_check  # flax's fields are of protocols that nothing checks at run time.
class Dense(Layer, nn.Dense):
    """`nn.Dense`."""


@no_type_check
class Conv(Layer, nn.Conv):
    """`nn.Conv`."""


@no_type_check
class Embed(Layer, nn.Embed):
    """`nn.Embed`."""


@no_type_check
class LayerNorm(Layer, nn.LayerNorm):
    """`nn.LayerNorm`."""
