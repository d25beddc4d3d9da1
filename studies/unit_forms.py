"""Forms of a concept unit, in text space: two units or one, beside the MLP's own or in their place.

    python -m studies.unit_forms runs/units --counts 10 30 100 300

RUN is the folder of a finished edit with concept units. Its concepts are written in these forms:

- `two units`: the clipped ramp that an edit writes; the MLP gets wider.
- `one unit`: the activation alone, which answers 1 at the score 1 and grows with it.
- `in place`: two units in the place of the least missed ones, as an edit writes them with
  `stage_two.units_in_place` (`editing/units/room.py`).
- `in place, least used`: of those that change their MLP's answers least over captions: variance
  times the column's squared length. The other columns are fitted as before.
- `in place, least used, not refitted`: the same, and only the mean goes into the bias.

*Success*: share of the judge's sentences about edited names whose final features are nearer to the
destination's than to the name's own. *Moved*: relative change of final features, mean over the
judge's sentences about names that nobody edits, and over captions that nothing was measured on.
*Right*: share of the former that still read as their own name among these names.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from emcid_jax.concepts.names import normalised
from emcid_jax.concepts.templates import fill
from emcid_jax.editing.encoder.hidden_units import WIDTH, Units, with_units
from emcid_jax.editing.encoder.whole_prompts import end_features
from emcid_jax.editing.units import room
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.evaluation.benchmarks.other_forms import reads_as_told
from emcid_jax.evaluation.drawing.sentences import SENTENCES
from emcid_jax.explore.session import open_session, solved
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.sprites.captions import sample_captions
from emcid_jax.sprites.catalogue import catalogue

SEED = 777
Params = Mapping[str, Any]


class Setting(NamedTuple):
    """What the forms are written from."""

    encoder: TextEncoder
    units: Units
    thresholds: Float[np.ndarray, " gate"]
    reference: Float[np.ndarray, "row dim"]
    """What the block's `fc1` reads at a sample of the captions' tokens."""


def two_units(setting: Setting) -> Params:
    """As an edit writes them."""
    return with_units(setting.encoder.params, setting.units)


def one_unit(setting: Setting) -> Params:
    """Units whose pre-activation is 0 where the ramp begins and HEIGHT at the score 1."""
    units = setting.units
    slope = WIDTH / (1 + WIDTH - setting.thresholds)
    first = units.biases[:, 0] * slope
    shut = np.full_like(first, -1e3)  # The second of each pair answers nothing.
    return with_units(
        setting.encoder.params,
        Units(
            units.block,
            (units.rows * slope[:, None]).astype(np.float32),
            np.stack([first, shut], axis=1).astype(np.float32),
            units.answers,
        ),
    )


def in_place(setting: Setting) -> Params:
    """Two units per concept in the place of the least missed ones."""
    units = setting.units
    made, _ = room.make_room(setting.encoder, units.block, units.width, setting.reference)
    return with_units(setting.encoder.params, dataclasses.replace(units, room=made))


def in_place_of_least_used(setting: Setting, refitted: bool) -> Params:
    """The same in the place of those whose answers change least."""
    units = setting.units
    mlp = room.read_mlp(setting.encoder, units.block, setting.reference)
    used = np.diag(mlp.covariance) * np.square(mlp.columns).sum(axis=0)
    places = np.argsort(used, kind="stable")[: units.width]
    change = np.zeros_like(mlp.columns)
    change[:, places] = -mlp.columns[:, places]
    if refitted:
        change = room.refitted(mlp.columns, mlp.covariance, places)
    made = mlp.without(places, change)
    return with_units(setting.encoder.params, dataclasses.replace(units, room=made))


FORMS: Mapping[str, Callable[[Setting], Params]] = {
    "two units": two_units,
    "one unit": one_unit,
    "in place": in_place,
    "in place, least used": lambda setting: in_place_of_least_used(setting, refitted=True),
    "in place, least used, not refitted": lambda setting: in_place_of_least_used(
        setting, refitted=False
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line per number of requests and form."""
    options = _parse(arguments)
    session = open_session(options.run)
    encoder, count = session.pipeline.encoder, len(session.concepts.concepts)
    statistics = session.moments[encoder.name]
    if not isinstance(statistics, UnitStatistics):
        sys.exit(f"RUN is {options.run}, an edit without concept units")
    requests = [concept.request for concept in session.concepts.concepts]
    known = {normalised(name) for one in requests for name in (one.source, *one.dests)}
    others = [name for name in catalogue().objects if normalised(name) not in known][:200]
    texts = [fill(sentence, name).prompt for name in others for sentence in SENTENCES]
    captions = [caption.text for caption in sample_captions(2_000, SEED)]
    names, told = (tokenize(encoder.tokenizer, some) for some in (texts, captions))
    before = [end_features(encoder, encoder.params, ids) for ids in (names, told)]
    print("| requests | form | units gone | success | right | moved, names | moved, captions |")
    print("|---|---|---|---|---|---|---|")
    for size in options.counts:
        edit = solved(session, [float(i < size) for i in range(count)]).edit[encoder.name]
        gates = edit.report.units
        assert edit.units is not None
        assert gates is not None
        thresholds = np.array([gate.threshold for gate in gates.gates if not gate.shares])
        setting = Setting(encoder, edit.units, thresholds, statistics.reference)
        pairs = [(one, one.source) for one in requests[:size]]
        for form, write in FORMS.items():
            params = write(setting)
            after = [end_features(encoder, params, ids) for ids in (names, told)]
            gone = edit.units.width if form.startswith("in place") else 0
            shares = [
                float(reads_as_told([encoder], {encoder.name: params}, pairs).mean()),
                _right(before[0], after[0]),
                *(_moved(*both) for both in zip(before, after, strict=True)),
            ]
            cells = " | ".join(f"{share:.4f}" for share in shares)
            print(f"| {size} | {form} | {gone} | {cells} |", flush=True)
    return 0


def _moved(
    before: Float[np.ndarray, "prompt dim"], after: Float[np.ndarray, "prompt dim"]
) -> float:
    sizes = np.linalg.norm(before, axis=1)
    return float((np.linalg.norm(after - before, axis=1) / sizes).mean())


def _right(
    before: Float[np.ndarray, "prompt dim"], after: Float[np.ndarray, "prompt dim"]
) -> float:
    """Share of prompts whose features are nearest to what their own name's were, sentence by
    sentence."""
    old, new = (
        states.reshape(-1, len(SENTENCES), states.shape[1]).swapaxes(0, 1)
        for states in (before, after)
    )
    apart = np.square(new).sum(2)[:, :, None] + np.square(old).sum(2)[:, None]
    apart = apart - 2 * new @ old.swapaxes(1, 2)
    return float((apart.argmin(axis=2) == np.arange(apart.shape[1])).mean())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m studies.unit_forms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 100, 300])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
