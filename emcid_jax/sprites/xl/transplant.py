"""Two smaller text encoders out of the first sprite model's: the same names, in other weights.

Some of its blocks add little, and so do half of its hidden units; both are left out. The second
encoder is then turned into another, wider basis in which no weight is recognisable. Layer norm
only sees the direction of a state about its mean, so turning a state about the mean changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

Params = dict[str, Any]


def shallower(text: Params, kept: Sequence[int], units: int) -> Params:
    """The blocks `kept` with their `units` strongest hidden units, and the last block twice.

    SDXL reads its encoders before the last block.
    """
    model = text["text_model"]
    blocks = [_narrower(model["encoder"][f"layers.{block}"], units) for block in kept]
    encoder = {f"layers.{i}": block for i, block in enumerate([*blocks, blocks[-1]])}
    return {"text_model": {**model, "encoder": encoder}}


def _narrower(block: Params, units: int) -> Params:
    first, second = block["mlp"]["fc1"], block["mlp"]["fc2"]
    strength = np.linalg.norm(first["kernel"], axis=0) * np.linalg.norm(second["kernel"], axis=1)
    best = np.sort(np.argsort(strength)[-units:])
    first = {"kernel": first["kernel"][:, best], "bias": first["bias"][best]}
    return {**block, "mlp": {"fc1": first, "fc2": {**second, "kernel": second["kernel"][best]}}}


def turned(text: Params, width: int, heads: int, seed: int) -> Params:
    """The encoder `text` with states of `width` > its own, in a random basis."""
    model = text["text_model"]
    embeddings = {name: dict(table) for name, table in model["embeddings"].items()}
    old = embeddings["token_embedding"]["embedding"].shape[1]
    turn = random_turn(old, width, seed)
    encoder = {name: _turned_block(block, turn, heads) for name, block in model["encoder"].items()}
    for table in embeddings.values():
        table["embedding"] = table["embedding"] @ turn
    return {
        "text_model": {
            "embeddings": embeddings,
            "encoder": encoder,
            "final_layer_norm": _plain_norm(width),
        }
    }


def random_turn(old: int, new: int, seed: int) -> Float[np.ndarray, "old new"]:
    """A map of states that keeps lengths and angles about the mean, and makes the mean zero."""
    rng = np.random.default_rng(seed)

    def centred(width: int) -> np.ndarray:
        """An orthonormal basis of the vectors of mean zero."""
        columns = np.concatenate([np.ones((width, 1)), rng.normal(size=(width, width - 1))], 1)
        return np.linalg.qr(columns)[0][:, 1:]

    return (centred(old) @ centred(new)[:, : old - 1].T).astype(np.float32)


def unnormed(
    kernel: Float[np.ndarray, "old out"],
    norm: Params,
    turn: Float[np.ndarray, "old new"],
) -> Float[np.ndarray, "new out"]:
    """What `kernel` behind the layer norm `norm` is behind a plain one of turned states."""
    old, new = turn.shape
    return (old / new) ** 0.5 * turn.T @ (np.asarray(norm["scale"])[:, None] * np.asarray(kernel))


def _plain_norm(width: int) -> Params:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _turned_block(block: Params, turn: np.ndarray, heads: int) -> Params:
    new = turn.shape[1]
    attention, mlp = block["self_attn"], block["mlp"]
    old_size, new_size = turn.shape[0] // heads, new // heads
    padding = ((0, 0), (0, 0), (0, new_size - old_size))

    def reads(layer: Params, norm: Params) -> Params:
        bias = layer["bias"] + norm["bias"] @ layer["kernel"]
        return {"kernel": unnormed(layer["kernel"], norm, turn), "bias": bias}

    def spread(layer: Params) -> Params:
        """Heads of the new size; what is new in them stays zero."""
        kernel, bias = (np.asarray(layer[leaf]) for leaf in ("kernel", "bias"))
        wide = np.pad(kernel.reshape(len(kernel), heads, old_size), padding)
        return {
            "kernel": wide.reshape(len(kernel), new),
            "bias": np.pad(bias.reshape(1, heads, old_size), padding).reshape(new),
        }

    def writes(layer: Params) -> Params:
        return {"kernel": np.asarray(layer["kernel"]) @ turn, "bias": layer["bias"] @ turn}

    projections = {
        name: spread(reads(attention[name], block["layer_norm1"]))
        for name in ("q_proj", "k_proj", "v_proj")
    }
    # Attention divides by the root of a head's size.
    scale = (new_size / old_size) ** 0.5
    projections["q_proj"] = {k: v * scale for k, v in projections["q_proj"].items()}
    out = writes(attention["out_proj"])
    rows = spread({"kernel": out["kernel"].T, "bias": np.zeros(turn.shape[0])})["kernel"].T
    return {
        "layer_norm1": _plain_norm(new),
        "self_attn": {**projections, "out_proj": {**out, "kernel": rows}},
        "layer_norm2": _plain_norm(new),
        "mlp": {"fc1": reads(mlp["fc1"], block["layer_norm2"]), "fc2": writes(mlp["fc2"])},
    }
