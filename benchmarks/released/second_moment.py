"""Second moments as released: a pass over all captions for every layer (docs/method.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.released.model import block

GROUP = 100
"""Captions sorted by length together."""
BATCH_TOKENS = 3 * 1024
"""Most tokens of a batch, padding included."""


class Moments(NamedTuple):
    """Layer -> E[k k^T], and what it took."""

    moments: dict[int, np.ndarray]
    block_tokens: int
    """Tokens, padding included, times the blocks they went through."""


class _ReachedError(Exception):
    """The layer to measure is done: the rest of the forward pass is not needed."""


def second_moments(pipe: Any, captions: list[str], layers: Sequence[int]) -> Moments:
    """One pass for each layer; each stops at its layer, as the release's does."""
    moments, work = {}, 0
    for layer in layers:
        moments[layer], tokens = _one_layer(pipe, captions, layer)
        work += tokens * (layer + 1)
    return Moments(moments, work)


@torch.no_grad()
def _one_layer(pipe: Any, captions: list[str], layer: int) -> tuple[np.ndarray, int]:
    size = pipe.text_encoder.config.intermediate_size
    total, count, work = torch.zeros(size, size), 0, 0
    kept: list[torch.Tensor] = []

    def keep(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept.append(inputs[0])
        raise _ReachedError

    hook = block(pipe, layer).mlp.fc2.register_forward_hook(keep)
    try:
        for batch in _batches(pipe, captions):
            with contextlib.suppress(_ReachedError):
                pipe.text_encoder(**batch)
            keys = kept.pop()[batch["attention_mask"].bool()]
            total += keys.T @ keys
            count += len(keys)
            work += batch["input_ids"].numel()
    finally:
        hook.remove()
    return (total / count).numpy(), work


def _batches(pipe: Any, captions: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Groups of captions sorted by length and cut where width times count gets too large."""
    for first in range(0, len(captions), GROUP):
        rows = pipe.tokenizer(captions[first : first + GROUP], truncation=True)["input_ids"]
        rows.sort(key=len, reverse=True)
        while rows:
            size = max(BATCH_TOKENS // len(rows[0]), 1)
            yield pipe.tokenizer.pad({"input_ids": rows[:size]}, return_tensors="pt")
            rows = rows[size:]
