"""An independent CLIP text encoder for oracles (NumPy, float64), and a bank of random memories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageOneConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.bank.memories import Memory, Record
from emcid_jax.models.text.clip import ClipTextConfig

START, END, VOCAB, TOKENS = 57, 58, 59, 16


class Trace(NamedTuple):
    hidden: list[np.ndarray]
    keys: list[np.ndarray]
    values: list[np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class NumpyClip:
    config: ClipTextConfig
    params: dict[str, Any]

    def forward(self, ids: np.ndarray, params: dict[str, Any] | None = None) -> Trace:
        tree = (params or self.params)["text_model"]
        words = tree["embeddings"]["token_embedding"]["embedding"][ids]
        x = words + tree["embeddings"]["position_embedding"]["embedding"][: ids.shape[1]]
        trace = Trace([], [], [])
        for index in range(self.config.num_hidden_layers):
            block = tree["encoder"][f"layers.{index}"]
            x = x + self._attention(_norm(x, block["layer_norm1"]), block["self_attn"])
            inner = _dense(_norm(x, block["layer_norm2"]), block["mlp"]["fc1"])
            key = inner / (1 + np.exp(-1.702 * inner))
            value = _dense(key, block["mlp"]["fc2"])
            x = x + value
            for states, state in zip(trace, (x, key, value), strict=True):
                states.append(state)
        return trace

    def _attention(self, x: np.ndarray, params: dict[str, Any]) -> np.ndarray:
        heads = self.config.num_attention_heads
        width = x.shape[-1] // heads
        query, key, value = (_dense(x, params[f"{n}_proj"]) for n in "qkv")
        out = np.zeros_like(x)
        future = np.triu(np.full((x.shape[1], x.shape[1]), -np.inf), 1)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = query[..., part] @ key[..., part].swapaxes(1, 2) / np.sqrt(width) + future
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            chances /= chances.sum(-1, keepdims=True)
            out[..., part] = chances @ value[..., part]
        return _dense(out, params["out_proj"])


def _dense(x: np.ndarray, params: dict[str, np.ndarray]) -> np.ndarray:
    return x @ params["kernel"] + params["bias"]


def _norm(x: np.ndarray, params: dict[str, np.ndarray]) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * params["scale"] + params["bias"]


@pytest.fixture(scope="session")
def numpy_clip() -> NumpyClip:
    """4 blocks x 32, inner 64; random weights, large enough that nothing is nearly linear."""
    rng = np.random.default_rng(0)
    config = ClipTextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        eos_token_id=END,
    )

    def dense(inside: int, outside: int) -> dict[str, np.ndarray]:
        kernel = rng.standard_normal((inside, outside)) / np.sqrt(inside)
        return {"kernel": kernel, "bias": 0.1 * rng.standard_normal(outside)}

    def norm() -> dict[str, np.ndarray]:
        return {
            "scale": 1 + 0.1 * rng.standard_normal(32),
            "bias": 0.1 * rng.standard_normal(32),
        }

    blocks = {
        f"layers.{index}": {
            "layer_norm1": norm(),
            "self_attn": {f"{n}_proj": dense(32, 32) for n in ("q", "k", "v", "out")},
            "layer_norm2": norm(),
            "mlp": {"fc1": dense(32, 64), "fc2": dense(64, 32)},
        }
        for index in range(4)
    }
    embeddings = {
        "token_embedding": {"embedding": rng.standard_normal((VOCAB, 32))},
        "position_embedding": {"embedding": 0.3 * rng.standard_normal((TOKENS, 32))},
    }
    tree = {"embeddings": embeddings, "encoder": blocks, "final_layer_norm": norm()}
    return NumpyClip(config, {"text_model": tree})


@pytest.fixture(scope="session")
def captions() -> np.ndarray:
    """300 captions of 1 to 12 words, padded with the end token as Stable Diffusion 1 does."""
    rng = np.random.default_rng(1)
    ids = np.full((300, TOKENS), END, np.int32)
    ids[:, 0] = START
    for row, length in zip(ids, rng.integers(1, 13, 300), strict=True):
        row[1 : 1 + length] = rng.integers(0, START, length)
    return ids


@pytest.fixture(scope="session")
def random_bank() -> Callable[..., ConceptBank]:
    """Requests, their states before the edit, hashes of the model, block L -> a bank.

    Its offsets are random, and its z are the states plus these.
    """

    def make(
        requests: list[EditRequest], start: np.ndarray, model: dict[str, str], block: int
    ) -> ConceptBank:
        delta = np.random.default_rng(0).standard_normal(start.shape)
        none = np.zeros(4, np.float32)
        records = [
            Record(
                memories.provenance(request, StageOneConfig(layer=block), model),
                Memory(z.astype(np.float32), d.astype(np.float32), none, none, none),
                {},
            )
            for request, z, d in zip(requests, start + delta, delta, strict=True)
        ]
        return concept_bank.of_requests(requests, records)

    return make
