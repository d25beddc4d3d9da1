"""`python -m studies.overlap --output ROWS.json`: edits of names that overlap, in text space.

Objects of the sprite world that share words (siblings: "tiger beetle", "dung beetle"; parent and
child: "rifle", "assault rifle"), other names of one class, one source with two destinations, and
pairs of sources by how alike their keys are. Targets are the destinations' own states; a name reads
as the one whose clean final features are nearest, in a template that no edit used. The
siblings are drawn, too. Questions that the output holds are not asked again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import workload
from emcid_jax.concepts.conflicts import find_conflicts
from emcid_jax.evaluation.judges.classifier import load_judge
from emcid_jax.evaluation.judges.labels import OBJECT
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import load_pipeline, with_text_params
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.storage.files import write_atomically
from studies import overlap_study, panels
from studies.overlap_study import DESTINATIONS, UNSEEN, Pair, Study
from studies.panels import Line, Panel

CONFLICTS = 50
APART = 50
"""Names that share no word with any, to compare with."""
LOAD = 300
"""Edits in all where the overlapping ones are not alone."""
WEIGHTS = (1.0, 4.0, 16.0)
"""Of the first of two destinations."""
BINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.01)
"""Of the cosine of two sources' keys."""
Row = dict[str, Any]


def watched(study: Study, topics: Mapping[str, Sequence[Pair]]) -> list[Row]:
    """Pairs of an edited and an unedited name: what becomes of the latter, by load and solver."""
    pairs = [pair for found in topics.values() for pair in found]
    sources = list(dict.fromkeys(pair.edited for pair in pairs))
    clean = study.pipeline.params["text_encoder"]
    stay = list(dict.fromkeys(p.watched for p in pairs if p.watched not in sources))
    good = [
        n
        for n, found in zip(stay, study.read(study.features(clean, stay)), strict=True)
        if n == found
    ]
    apart, others = study.spare[DESTINATIONS:][:APART], study.spare[DESTINATIONS + APART :]
    names = [*sources, *good, *apart]
    before = study.features(clean, names)
    rows = []
    for more in (0, LOAD - len(sources)):
        requests = study.requests([*sources, *others[:more]])
        dest = {request.source: str(request.dest) for request in requests}
        for solver in ("ridge", "ridge+preserve"):
            told = tuple(good) if solver == "ridge+preserve" else ()
            after = study.features(study.edited(requests, solver=solver, preserve=told), names)
            now = dict(zip(names, study.read(after), strict=True))
            size = np.linalg.norm(before, axis=1)
            drift = dict(zip(names, np.linalg.norm(after - before, axis=1) / size, strict=True))
            for topic, some in topics.items():
                near = [pair for pair in some if pair.watched in good]
                rows.append(
                    {
                        "topic": topic,
                        "edits": len(requests),
                        "solver": solver,
                        "watched": len(near),
                        "edited": _mean(now[name] == dest[name] for name in sources),
                        "stay": _mean(now[pair.watched] == pair.watched for pair in near),
                        "follow": _mean(now[pair.watched] == dest[pair.edited] for pair in near),
                        "apart": _mean(now[name] == name for name in apart),
                        "drift": _mean(drift[pair.watched] for pair in near),
                        "drift apart": _mean(drift[name] for name in apart),
                    }
                )
    return rows


def parents(study: Study) -> list[Row]:
    """Siblings, and children, of edited names."""
    return watched(
        study,
        {
            "siblings": overlap_study.siblings(study.objects),
            "parents, last word": overlap_study.children(study.objects, ends=True),
            "parents, first word": overlap_study.children(study.objects, ends=False),
        },
    )


def children(study: Study) -> list[Row]:
    """Parents of edited names."""
    topics = {}
    for name, ends in (("last", True), ("first", False)):
        pairs = overlap_study.children(study.objects, ends=ends)
        topics[f"children, {name} word"] = [Pair(p.watched, p.edited) for p in pairs]
    return watched(study, topics)


def aliases(study: Study) -> list[Row]:
    """Other names of edited classes: whether they follow, alone and when they are edited too."""
    topics = overlap_study.aliases(study.objects, CONFLICTS)
    pairs = [pair for some in topics.values() for pair in some]
    requests = study.requests([pair.edited for pair in pairs])
    more = [
        dataclasses.replace(request, source=pair.watched)
        for request, pair in zip(requests, pairs, strict=True)
    ]
    dest = {request.source: str(request.dest) for request in requests}
    rows = []
    ways = {"": [], "the class": requests, "the class and the aliases": requests + more}
    for name, asked in ways.items():
        params = study.edited(asked) if asked else study.pipeline.params["text_encoder"]
        for shares, some in topics.items():
            found, written = (
                study.read(study.features(params, names))
                for names in ([p.watched for p in some], [p.edited for p in some])
            )
            both = list(zip(some, found, written, strict=True))
            rows.append(
                {
                    "topic": "aliases with a word of it" if shares else "aliases of other words",
                    "written": name,
                    "edits": len(asked),
                    "aliases": len(some),
                    "edited": _mean(now == dest[pair.edited] for pair, _, now in both),
                    "stay": _mean(now == pair.edited for pair, now, _ in both),
                    "follow": _mean(now == dest[pair.edited] for pair, now, _ in both),
                }
            )
    return rows


def conflicting(study: Study) -> list[Row]:
    """One source, two destinations: which of them it reads as, by the first one's weight."""
    sources = study.spare[-CONFLICTS:]
    first, second = study.requests(sources), study.requests(sources, CONFLICTS)
    refused = [one for one in find_conflicts(first + second) if one.severity == "error"]
    rows = []
    for weight in WEIGHTS:
        heavy = [dataclasses.replace(request, weight=weight) for request in first]
        found = study.read(study.features(study.edited(heavy + second), sources))
        shares = [
            _mean(now == request.dest for now, request in zip(found, asked, strict=True))
            for asked in (first, second)
        ]
        itself = _mean(now == name for now, name in zip(found, sources, strict=True))
        rows.append(
            {
                "topic": "two destinations",
                "weight": weight,
                "first": shares[0],
                "second": shares[1],
                "itself": itself,
                "neither": 1 - sum(shares) - itself,
                "refused": len(refused),
            }
        )
    return rows


def alike(study: Study) -> list[Row]:
    """Pairs of sources with different destinations, by how alike their keys are."""
    pairs = overlap_study.near(study.objects, study.spare, CONFLICTS // 2)
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.edited, pair.watched)))
    cosines, place = study.cosines(names), {name: i for i, name in enumerate(names)}
    similar = np.array([cosines[place[pair.edited], place[pair.watched]] for pair in pairs])
    first = study.requests([pair.edited for pair in pairs])
    second = study.requests([pair.watched for pair in pairs], len(pairs))
    merged = [dataclasses.replace(b, dest=a.dest) for a, b in zip(first, second, strict=True)]
    right = {}
    for name, partner in (("apart", second), ("merged", merged)):
        params = study.edited(first + partner)
        asked = [*first, *partner]
        found = study.read(study.features(params, [one.source for one in asked]))
        hits = [now == request.dest for now, request in zip(found, asked, strict=True)]
        right[name] = np.array(hits).reshape(2, -1).all(axis=0)
    rows = []
    for low, high in itertools.pairwise(BINS):
        inside = (similar >= low) & (similar < high)
        if inside.any():
            shares = {name: float(hits[inside].mean()) for name, hits in right.items()}
            about = {"pairs": int(inside.sum()), "cosine": float(similar[inside].mean())}
            rows.append({"topic": "keys alike", "from": low, **about, **shares})
    return rows


def images(study: Study) -> list[Row]:
    """The siblings drawn before and after: the judge's probability of the right object."""
    pairs = overlap_study.siblings(study.objects)
    requests = study.requests(list(dict.fromkeys(pair.edited for pair in pairs)))
    edited = {request.source for request in requests}
    stay = [pair.watched for pair in pairs if pair.watched not in edited][:60]
    apart = list(study.spare[DESTINATIONS:][:60])
    judge = load_judge(study.pipeline.folder / "judge")
    rows = []
    for name, settings in (
        ("unedited", None),
        ("ridge", {}),
        ("ridge+preserve", {"solver": "ridge+preserve", "preserve": tuple(stay)}),
    ):
        pipeline = study.pipeline
        if settings is not None:
            pipeline = with_text_params(
                pipeline, {"text_encoder": study.edited(requests, **settings)}
            )
        prompts = [UNSEEN.format(one) for one in [*stay, *apart]]
        drawn = generate(pipeline, prompts, range(len(prompts)), steps=15, guidance=4.0)
        chances = judge.classify(drawn)[OBJECT]
        right = [study.objects.index(one) for one in [*stay, *apart]]
        scores = chances[np.arange(len(right)), right]
        rows.append(
            {
                "topic": "images",
                "solver": name,
                "siblings": float(scores[: len(stay)].mean()),
                "apart": float(scores[len(stay) :].mean()),
                "images": len(right),
            }
        )
    return rows


QUESTIONS: Mapping[str, Callable[[Study], list[Row]]] = {
    "parents": parents,
    "children": children,
    "aliases": aliases,
    "conflicting": conflicting,
    "alike": alike,
    "images": images,
}


def _mean(hits: Any) -> float:
    found = list(hits)
    return float(np.mean(found)) if found else float("nan")


def table(rows: Sequence[Row]) -> str:
    """Every question's rows as a Markdown table with its own columns."""
    parts = []
    for columns in dict.fromkeys(tuple(row) for row in rows):
        lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for row in rows:
            if tuple(row) == columns:
                cells = (f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values())
                lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def figure(rows: Sequence[Row]) -> list[Panel]:
    """Overlapping names by solver, two destinations by weight, pairs by how alike keys are."""
    near = [row for row in rows if "drift apart" in row and row["edits"] < LOAD]
    topics = list(dict.fromkeys(row["topic"] for row in near))
    drifts = []
    for number, solver in enumerate(dict.fromkeys(row["solver"] for row in near)):
        mine = [row for row in near if row["solver"] == solver]
        ratios = [row["drift"] / row["drift apart"] for row in mine]
        drifts.append(Line(solver, range(len(topics)), ratios, number, ""))
    ticks = [topic.replace(", ", "\n").replace(" word", "") for topic in topics]
    two = [row for row in rows if row["topic"] == "two destinations"]
    weights = [row["weight"] for row in two]
    shares = [
        Line(f"reads as the {field} one", weights, [row[field] for row in two], number)
        for number, field in enumerate(("first", "second"), 3)
    ]
    pairs = [row for row in rows if row["topic"] == "keys alike"]
    cosines = [row["cosine"] for row in pairs]
    both = [
        Line("own destinations", cosines, [row["apart"] for row in pairs], 5),
        Line("one destination for both", cosines, [row["merged"] for row in pairs], 6),
    ]
    return [
        Panel(
            "drift of overlapping names over that of others",
            drifts,
            "edited",
            y_range=(0, None),
            ticks=ticks,
        ),
        Panel("one source, two destinations", shares, "weight of the first", log="x"),
        Panel("pairs that both read right", both, "cosine of their keys"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, writes the rows after every question, and draws the figure."""
    parser = argparse.ArgumentParser(prog="python -m studies.overlap", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the rows")
    parser.add_argument("--moments", type=Path, help="a workdir's second moments")
    parser.add_argument("--plot", type=Path, help="PNG of the figure")
    options = parser.parse_args(arguments)
    pipeline = load_pipeline(model_folder(BUNDLED))
    study = overlap_study.make_study(pipeline, workload.moments(pipeline, 20_000, options.moments))
    done: dict[str, list[Row]] = {}
    if options.output.exists():
        done = json.loads(options.output.read_text())
    for name, ask in QUESTIONS.items():
        if name not in done:
            done[name] = ask(study)
            write_atomically(options.output, json.dumps(done, indent=1).encode())
        print(f"\n{table(done[name])}", flush=True)
    if options.plot:
        rows = [row for name in QUESTIONS for row in done[name]]
        panels.draw(figure(rows), options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
