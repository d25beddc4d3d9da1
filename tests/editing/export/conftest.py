"""Edits with units and of two encoders, and calls broken off at any change of a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emcid_jax.editing.encoder.hidden_units import Room, Units
from emcid_jax.editing.export.edit_file import EditFile, Edits, pack
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.storage import files


@pytest.fixture(scope="session")
def units_content() -> EditFile:
    """Three gates in block 1, which make the encoder six units wider."""
    rng = np.random.default_rng(3)
    rows, answers = (rng.standard_normal((3, 32)).astype(np.float32) for _ in range(2))
    return pack({}, Units(1, rows, np.array([[0.5, -3.5]] * 3, np.float32), answers))


@pytest.fixture(scope="session")
def xl_pipeline(tiny_xl_folder: Path) -> Pipeline:
    return load_pipeline(tiny_xl_folder)


@pytest.fixture(scope="session")
def xl_edits() -> Edits:
    """Low rank in two blocks of the first encoder, full rank in two of the second."""
    rng = np.random.default_rng(12)
    first = {
        layer: 0.05 * rng.standard_normal((32, 3)) @ rng.standard_normal((3, 64))
        for layer in (0, 1)
    }
    second = {layer: 0.05 * rng.standard_normal((48, 96)) for layer in (1, 2)}
    return {"text_encoder": pack(first), "text_encoder_2": pack(second)}


@pytest.fixture(scope="session")
def xl_units() -> Edits:
    """A gate in the first block of both encoders, in the place of other hidden units."""
    rng = np.random.default_rng(13)

    def made(dim: int, inner: int) -> EditFile:
        def some(*shape: int) -> np.ndarray:
            return (0.2 * rng.standard_normal(shape)).astype(np.float32)

        places = np.array([inner - 1, 4], np.int32)
        room = Room(places, some(2, dim), some(2), some(dim, inner), some(dim))
        return pack({}, Units(0, some(1, dim), some(1, 2), some(1, dim), room))

    return {"text_encoder": made(32, 64), "text_encoder_2": made(48, 96)}


@pytest.fixture(scope="session")
def xl_ledger(xl_pipeline: Pipeline) -> dict[str, Any]:
    base = {encoder.name: params_hash(encoder.params) for encoder in xl_pipeline.encoders}
    return {
        "base": base,
        "edited": "?",
        "requests": [],
        "encoders": {"text_encoder_2": {"edited": "?"}},
    }


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], int], bool]:
    """`interrupted(call, n)`: the call, broken off before its n-th change of a name.

    Such changes are renames, removals and exchanges. False: the call ended before it came to it.
    """

    def run(call: Callable[[], object], number: int) -> bool:
        left = number

        def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
            def change(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left == -1:
                    raise KeyboardInterrupt
                return operation(*arguments, **named)

            return change

        changes = ((Path, "rename"), (Path, "replace"), (Path, "unlink"), (files, "_exchanged"))
        with monkeypatch.context() as patch:
            for owner, name in changes:
                patch.setattr(owner, name, watched(getattr(owner, name)))
            try:
                call()
            except KeyboardInterrupt:
                return True
        return False

    return run
