"""`python -m studies.architectures --workdir W`: what of an edit carries over to other encoders.

Edits the encoders of `studies.small_encoders` (trained there if W lacks them): n of 150 names
onto others, at matched n per key dimension d, by block L, lambda, layers and templates, and with
memories of text-only Stage I. A name reads as the one whose clean end token is nearest, in the
edits' first template (`written`) or in one that no edit used (`edited`, `kept`), where the linear
read-out is asked for the look, too (`read`, `kept read`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import OBJECT_TEMPLATES
from emcid_jax.config import StageOneConfig, StageTwoConfig
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.encoder.blockwise import SourcePrompts
from emcid_jax.editing.encoder.whole_prompts import Prompts, end_features, text_states
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_one import prepare as preparation
from emcid_jax.editing.stage_one import run as stage_one
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.evaluation.text_space.nearest_name import nearest
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, tokenize
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.captions import OBJECT_TEMPLATES as CAPTIONS
from emcid_jax.storage.files import write_atomically
from studies import encoder_cases, panels, small_encoders
from studies.encoder_cases import HELD, UNSEEN, Case
from studies.panels import COLOURS, Line, Panel

LOADS = (1 / 16, 1 / 8, 1 / 4)
"""Edits per key dimension."""
USUAL = 1 / 8
DEPTHS = (0.6, 1.0)
"""Of block L: 0 is the first block, 1 the last."""
RATIO = 0.5
"""lambda over the leverage of the edits' keys; 4,000 is about that on the bundled model."""
RATIOS = (0.05, 5.0)
PUBLISHED = 4000.0
SHRINKS = (0.001,)
MANY = tuple(one for one in CAPTIONS if one != UNSEEN)[1:13]
"""More templates than an edit usually has, none of which is that of judging."""
CASES = {
    "SD 1-like (base)": ("base",),
    "MLP x 2": ("MLP x 2",),
    "MLP / 2": ("MLP / 2",),
    "4 blocks": ("4 blocks",),
    "1 head": ("1 head",),
    "early, last block read": ("early",),
    "SD 2-like (early, cut)": ("early cut",),
    "SDXL-like (two encoders)": ("base", "MLP x 2"),
}

HEADER = (
    "| encoder | d | varied | value | n | lambda | written | edited | read | kept | kept read "
    "| drift | reached |\n" + "|---" * 13 + "|"
)


class Setting(NamedTuple):
    """One solve."""

    sweep: str
    value: float
    load: float = USUAL
    depth: float | None = None
    """Of block L; None: the last but one."""
    ratio: float = RATIO
    """lambda over the leverage."""
    preservation_weight: float | None = None
    """lambda itself."""
    first: float = 0.0
    """First edited layer as a share of L."""
    stage_one: bool = False
    only: int | None = None
    """The one encoder that is edited; None: all."""
    shrink: float = 0.0
    """C + this share of C's mean eigenvalue on the diagonal."""
    templates: tuple[str, ...] = OBJECT_TEMPLATES


def settings(case: Case) -> Iterator[Setting]:
    """All solves of a case."""
    yield from (
        Setting("load", load, load)
        for load in LOADS
        if round(load * case.width) <= len(case.names) - HELD
    )
    yield from (Setting("block", depth, depth=depth) for depth in DEPTHS)
    yield from (Setting("lambda", ratio, ratio=ratio) for ratio in RATIOS)
    yield Setting("lambda 4,000", PUBLISHED, preservation_weight=PUBLISHED)
    yield from (Setting("layers from", first, first=first) for first in (1.0,))
    yield from (Setting("C shrunk", share, shrink=share) for share in SHRINKS)
    yield Setting("templates", len(MANY), templates=MANY)
    yield Setting("Stage I, text only", 1.0, stage_one=True)
    if len(case.encoders) > 1:
        yield from (Setting("one encoder alone", i, only=i) for i in range(len(case.encoders)))


def memories(
    pipeline: Pipeline, requests: Sequence[EditRequest], block: int, optimised: bool
) -> np.ndarray:
    """The destinations' own states at block L in prompt 0, or what text-only Stage I finds."""
    wanted = spans.destination_prompts(pipeline.encoder.tokenizer, requests)
    if not optimised:
        prompts = Prompts(wanted.ids[:, 0], wanted.positions[:, 0])
        return text_states(pipeline.encoder, pipeline.params["text_encoder"], prompts, block).state
    config = StageOneConfig(
        layer=block,
        objective="text-only",
        learning_rate=0.5,
        text_loss_scale=1.0,
        text_tokens=12,
        weight_decay=0.0,
    )
    source = spans.source_prompts(pipeline.encoder.tokenizer, requests)
    mesh = parallel.make_mesh()
    inputs = preparation.prepare(pipeline, source, wanted, [0] * len(requests), None, config, mesh)
    return np.asarray(stage_one.optimise(pipeline, inputs, config, mesh).z)


def solve(case: Case, asked: Setting) -> dict[str, Any]:
    """The row of one solve."""
    requests = case.requests(max(4, round(asked.load * case.width)), asked.templates)
    features, reached, own, weights = [], [], [], []
    for index, (one, moments) in enumerate(zip(case.encoders, case.moments, strict=True)):
        pipeline, pristine = one.pipeline, one.pipeline.params["text_encoder"]
        params = pristine
        blocks = pipeline.encoder.model.config.num_hidden_layers
        block = blocks - 2 if asked.depth is None else round(asked.depth * (blocks - 1))
        if asked.only in (None, index):
            layers = tuple(range(round(asked.first * block), block + 1))
            known = shrunk(moments, asked.shrink)
            weight = asked.preservation_weight or asked.ratio * leverage(
                pipeline.encoder, requests, known, layers
            )
            edit = stage_two.solve(
                pipeline.encoder.model,
                params,
                memories(pipeline, requests, block, asked.stage_one),
                SourcePrompts(*spans.source_prompts(pipeline.encoder.tokenizer, requests)),
                known,
                StageTwoConfig(layers=layers, preservation_weight=weight),
                block=block,
            )
            weights.append(weight)
            params = stage_two.apply_edit(params, edit)
            reached.append(1 - edit.report.distance_after / edit.report.distance_before)
        ids = tokenize(pipeline.encoder.tokenizer, [UNSEEN.format(name) for name in case.names])
        features.append(end_features(pipeline.encoder, params, ids))
        first = asked.templates[0]
        ids = tokenize(pipeline.encoder.tokenizer, [first.format(name) for name in case.names])
        own.append([end_features(pipeline.encoder, p, ids) for p in (pristine, params)])
    before, after = (np.concatenate(parts, axis=1) for parts in zip(*own, strict=True))
    dests = [case.names.index(str(request.dest)) for request in requests]
    written = nearest(after[: len(requests)], before) == dests
    return {
        "sweep": asked.sweep,
        "value": asked.value,
        "n": len(requests),
        "lambda": float(np.mean(weights)),
        "written": float(written.mean()),
        **encoder_cases.judge(case, requests, np.concatenate(features, axis=1)),
        "reached": float(np.mean(reached)),
    }


def leverage(
    encoder: TextEncoder,
    requests: Sequence[EditRequest],
    moments: SecondMoments,
    layers: Sequence[int],
) -> float:
    """k^T C^-1 k of the requests' keys, median over them and over the layers.

    One edit alone misses the share lambda / (lambda + leverage) of what a layer is asked.
    """
    keys = predicted_conflicts.clean_run(encoder, requests, layers).keys
    found = [
        np.square(moments.moment(layer).factor.whiten(keys[layer].T)).sum(axis=0)
        for layer in layers
    ]
    return float(np.median(found))


def shrunk(moments: SecondMoments, share: float) -> SecondMoments:
    """C with some of its mean eigenvalue added to all of them."""
    if not share:
        return moments
    matrices = {
        layer: matrix + share * np.trace(matrix) / len(matrix) * np.eye(len(matrix))
        for layer, matrix in moments.moments.items()
    }
    return dataclasses.replace(moments, moments=matrices)


def run(label: str, base: Pipeline, folder: Path) -> list[dict[str, Any]]:
    """All rows of a case, those that `folder` holds included; the first is the unedited model."""
    path = folder / f"{small_encoders.file_name(label)}.json"
    if path.exists():
        return json.loads(path.read_text())
    case = encoder_cases.make_case(CASES[label], base, folder)
    untouched = encoder_cases.judge(
        case, case.requests(len(case.names) - HELD), np.concatenate(case.clean, 1)
    )
    about = {"case": label, "d": case.width}
    rows = [
        about
        | {
            "sweep": "unedited",
            "value": 0.0,
            "n": 0,
            "lambda": 0.0,
            "written": 0.0,
            **untouched,
            "reached": 0.0,
        }
    ]
    rows += [about | solve(case, asked) for asked in settings(case)]
    write_atomically(path, json.dumps(rows, indent=1).encode())
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    names = ("written", "edited", "read", "kept", "kept read", "drift", "reached")
    cells = [
        row["case"],
        str(row["d"]),
        row["sweep"],
        f"{row['value']:.3g}",
        str(row["n"]),
        f"{row['lambda']:.0f}",
    ]
    return f"| {' | '.join([*cells, *(format(row[name], '.2f') for name in names)])} |"


def curves(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """Edited and held names over load, block L and lambda, a line per encoder."""

    def panel(sweep: str, field: str, title: str, x_label: str, log: str = "") -> Panel:
        lines = []
        for number, label in enumerate(CASES):
            mine = [row for row in rows if (row["case"], row["sweep"]) == (label, sweep)]
            if sweep == "lambda":  # The usual one is among the loads.
                usual = (label, "load", USUAL)
                mine += [
                    row | {"value": RATIO}
                    for row in rows
                    if (row["case"], row["sweep"], row["value"]) == usual
                ]
                mine.sort(key=lambda row: row["value"])
            x, y = ([row[name] for row in mine] for name in ("value", field))
            lines.append(Line(label, x, y, number, "-" if number < len(COLOURS) else "--"))
        return Panel(title, lines, x_label, log)

    edited, kept = "edited names that read as destinations", "held names that read as themselves"
    return [
        panel("load", "edited", edited, "edits per key dimension"),
        panel("load", "kept", kept, "edits per key dimension"),
        panel("block", "edited", edited, "block L (0: first, 1: last)"),
        panel("lambda", "edited", edited, "lambda / leverage", "x"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table case by case, and draws the curves."""
    parser = argparse.ArgumentParser(prog="python -m studies.architectures", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="encoders and rows")
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES], help="cases")
    parser.add_argument("--plot", type=Path, help="PNG of the curves")
    options = parser.parse_args(arguments)
    base = load_pipeline(model_folder(BUNDLED))
    print(HEADER, flush=True)
    rows = []
    for label in options.only:
        found = run(label, base, options.workdir)
        print("\n".join(map(line, found)), flush=True)
        rows += found
    if options.plot:
        panels.draw(curves(rows), options.plot, across=2, columns=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
