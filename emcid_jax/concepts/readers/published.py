"""The published request files, turned into records with the manifest's fields."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np

from emcid_jax.concepts.readers.literal_lists import literal_list
from emcid_jax.concepts.templates import (
    ARTIST_TEMPLATES,
    DEBIAS_TEMPLATES,
    TEMPLATE_SETS,
    template_from,
)
from emcid_jax.runtime.errors import Failures, Problem
from emcid_jax.storage.json_text import Record

ARTIST_DEST = "art"
ACCEPTED = (
    "give a manifest (source, dest, ... as JSON, YAML or CSV) or a published file: AICE or "
    "rectification CSV/JSON, artist names or prompts, debias, TIMED or RoAD CSV, instruction JSON"
)

CLASS_PROMPT_KEYS = frozenset(
    ("class name", "text prompt", "random seed", "class id", "dest", "dest id")
)

Convert = Callable[[list[Record], Failures], list[Record]]


def _edit_rows(rows: list[Record], failures: Failures) -> list[Record]:
    """AICE and rectification CSVs: `prompts` holds the editing templates or the free-form prompts.

    Editing templates are a known set, or the same in every row; anything else are sentences written
    for one class, which the benchmark draws and never edits with (two of them have no slot).
    """
    lists = {row["prompts"] for row in rows}
    shared = len(lists) == 1 and len(rows) > 1
    records = []
    for row in rows:
        fields = dict(row)
        same_class = row["source id"].strip() and row["source id"] == row["dest id"]
        fields["task"] = "rectify" if same_class else "update"
        if row["seeds"].strip() == "[]":
            del fields["seeds"]
        names = {}
        if not shared and not _is_template_set(row["prompts"]):
            fields["validation_templates"] = fields.pop("prompts")
            names["validation_templates"] = "prompts"
        records.append(Record(fields, row.line, names=names))
    return records


def _is_template_set(text: str) -> bool:
    found = literal_list(text)
    # What is no list is left as templates, so that the reader reports it under its own name.
    return found is None or tuple(found) in TEMPLATE_SETS.values()


def is_class_prompt(record: Record) -> bool:
    """Whether an object is one prompt of `imgnet_aug_edit.json`."""
    return set(record) >= CLASS_PROMPT_KEYS


def class_prompts(records: list[Record], failures: Failures) -> list[Record]:
    """`imgnet_aug_edit.json`: one object per prompt, five prompts per class, one request per class.

    Training seeds are not in the file; the benchmark draws them as done here (its CSV export holds
    the same ones).
    """
    seeds = random.Random(2023).sample(range(10000), 300)
    classes: dict[str, Record] = {}
    for record in records:
        missing = sorted(CLASS_PROMPT_KEYS - set(record))
        if missing or not isinstance(record["class name"], str):
            field = missing[0] if missing else "class name"
            problem = "is missing" if missing else "is not text"
            fix = f"give every prompt a {field}"
            failures.add(record.line, Problem(field, problem, record.get(field), fix))
            continue
        name = record["class name"]
        if name not in classes:
            fields = {
                "source": name,
                "dest": record["dest"],
                "source_id": record["class id"],
                "dest_id": record["dest id"],
                # The released loop reads one element ahead; the last two classes share the last.
                "seed": seeds[min(len(classes) + 1, len(seeds) - 1)],
                "seeds": [],
                "validation_templates": [],
            }
            classes[name] = Record(fields, record.line)
        request = classes[name]
        if record["dest"] != request["dest"]:
            fix = f"give the class one destination, as in line {request.line}"
            problem = Problem("dest", "is a second destination of the class", record["dest"], fix)
            failures.add(record.line, problem)
        request["seeds"].append(record["random seed"])
        request["validation_templates"].append(record["text prompt"])
    return list(classes.values())


def artist_names(names: list[str], lines: list[int]) -> list[Record]:
    """A list of artist names, each with its line, all erased towards "art"."""
    seeds = artist_seeds(len(names))
    return [
        Record(
            {
                "source": name,
                "dest": ARTIST_DEST,
                "task": "erase",
                "templates": ARTIST_TEMPLATES,
                "seed": seed,
            },
            line,
        )
        for name, line, seed in zip(names, lines, seeds, strict=True)
    ]


def artist_seeds(count: int) -> list[int]:
    """The published training seeds, `torch.randint(0, 100000)` after `manual_seed(2023)`.

    PyTorch's CPU generator is the same Mersenne Twister; it takes the 32-bit word modulo the range.
    """
    words = np.random.RandomState(2023).randint(0, 2**32, size=count, dtype=np.uint32)
    return [int(word) for word in words % 100000]


def _artist_prompts(rows: list[Record], failures: Failures) -> list[Record]:
    """`erased-*.csv`: prompts of erased artists; `preserved` and `holdout` rows are no requests."""
    artists: dict[str, Record] = {}
    for row in rows:
        if row["type"] not in ("erased", "preserved", "holdout"):
            problem = Problem("type", "is unknown", row["type"], "use erased, preserved or holdout")
            failures.add(row.line, problem)
        if row["type"] != "erased":
            continue
        name = row["artist"]
        if name not in artists:
            artists[name] = artist_names([name], [row.line])[0]
            artists[name] |= {"seeds": [], "validation_templates": []}
        artists[name]["seeds"].append(row["evaluation_seed"])
        artists[name]["validation_templates"].append(template_from(row["prompt"], name))
    for record, seed in zip(artists.values(), artist_seeds(len(artists)), strict=True):
        record["seed"] = seed
    return list(artists.values())


def _professions(rows: list[Record], failures: Failures) -> list[Record]:
    """The debias CSVs: two equal shares. The unprocessed file names one of the two.

    Only columns that `TABLES` names are read.
    """
    records = []
    for row in rows:
        if {"female", "male"} <= set(row):
            dest = [row["female"], row["male"]]
        else:
            neutral = re.sub(r"\b(fe)?male\b", "{}", row["new"])
            if neutral == row["new"]:
                problem = "names neither female nor male"
                failures.add(row.line, Problem("new", problem, row["new"], "write a female ..."))
                continue
            dest = [neutral.replace("{}", gender) for gender in ("female", "male")]
        prompts = [row[name] for name in ("validation", "ex1", "ex2", "ex3", "ex4", "ex5")]
        fields = {
            "source": row["old"],
            "dest": dest,
            "task": "debias",
            "templates": DEBIAS_TEMPLATES,
            "validation_templates": [template_from(prompt, row["old"]) for prompt in prompts],
        }
        records.append(Record(fields, row.line))
    return records


def _timed(rows: list[Record], failures: Failures) -> list[Record]:
    return [Record({"source": row["old"], "dest": row["new"]}, row.line) for row in rows]


def _road(rows: list[Record], failures: Failures) -> list[Record]:
    return [Record({"source": row["Prompt"], "dest": row["New"]}, row.line) for row in rows]


def _has(*names: str) -> Callable[[frozenset[str]], bool]:
    return lambda columns: columns.issuperset(names)


TABLES: tuple[tuple[Callable[[frozenset[str]], bool], Convert], ...] = (
    (_has("source", "dest", "prompts", "seeds", "source id", "dest id"), _edit_rows),
    (_has("prompt", "evaluation_seed", "artist", "type"), _artist_prompts),
    (_has("old", "new", "validation", "ex1", "ex2", "ex3", "ex4", "ex5"), _professions),
    (_has("old", "new", "positive1", "gt1", "negative1", "gn1"), _timed),
    (_has("Type", "Prompt", "Old", "New", "Positive1", "Negative1"), _road),
)
"""Kinds of published CSV: the columns that identify it, and its conversion."""
