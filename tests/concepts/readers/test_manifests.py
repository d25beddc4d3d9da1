from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.concepts.readers.manifests import read_requests
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import ARTIST_TEMPLATES, DEBIAS_TEMPLATES, OBJECT_TEMPLATES
from emcid_jax.runtime.errors import UserError


def read(content: str, name: str = "requests.json", **options: Any) -> list[EditRequest]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(content, encoding="utf-8", newline="")
        return read_requests(path, **options)


def errors(content: str, name: str = "requests.json") -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(UserError) as caught:
        read(content, name)
    return [line[line.index(name) :] for line in str(caught.value).splitlines()]


# Names as people write them; the ends are not white space, which readers strip.
names = (
    st.text(st.sampled_from("aZéł’' -.,:|#\"{}[]&*!%@0\u2028\U0001f600ńĐ\n"), max_size=8)
    .map(lambda name: "x" + name + "y")
    .filter(lambda name: name.strip() == name)
)
sentences = st.tuples(names, names).map(lambda pair: (pair[0] + pair[1]).replace("{}", "()"))
templates = st.tuples(sentences, sentences).map(lambda pair: f"{pair[0]} {{}} {pair[1]}")
seeds = st.integers(0, 2**32 - 1)


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a request; beartype draws random numbers, so the tests build it themselves."""
    task = draw(st.sampled_from(["update", "erase", "rectify", "debias"]))
    dest: Any = draw(names)
    ratios: tuple[float, ...] = ()
    if task == "debias":
        dest = tuple(draw(st.lists(names, min_size=2, max_size=3)))
        ratios = (1 / len(dest),) * len(dest)
    validation = tuple(draw(st.lists(templates | sentences, max_size=3)))
    editing = tuple(draw(st.lists(templates, min_size=1, max_size=3)))
    count = len(validation or editing)
    return dict(  # noqa: C408 - the names are those of the fields
        source=draw(names),
        dest=dest,
        templates=editing,
        task=task,
        seed=draw(seeds),
        weight=draw(st.floats(1e-3, 1e3)),
        ratios=ratios,
        source_id=draw(st.none() | st.integers(0, 999)),
        dest_id=draw(st.none() | st.integers(0, 999)),
        seeds=tuple(draw(st.just([]) | st.lists(seeds, min_size=count, max_size=count))),
        validation_templates=validation,
        image_paths=tuple(draw(st.lists(names, max_size=2))) * max(1, len(ratios)),
    )


def as_object(request: EditRequest) -> dict[str, Any]:
    """The request as a manifest writes it; empty fields are left out."""
    named = {name: getattr(request, name) for name in EditRequest.__dataclass_fields__}
    named = {name: value for name, value in named.items() if value not in ((), None)}
    del named["origin"]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in named.items()}


@given(drawn=st.lists(fields(), min_size=1, max_size=3), wrapped=st.booleans())
@settings(max_examples=60, deadline=None)
def test_manifests_round_trip(drawn: list[dict[str, Any]], wrapped: bool) -> None:
    asked = [EditRequest(**one) for one in drawn]
    objects = [as_object(request) for request in asked]
    content = {"requests": objects} if wrapped else objects
    assert read(json.dumps(content, ensure_ascii=False)) == asked
    assert read(yaml.safe_dump(content, allow_unicode=True), "requests.yaml") == asked
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    columns = list(dict.fromkeys(name for item in objects for name in item))
    writer.writerow(columns)
    for item in objects:
        cells = [item.get(name, "") for name in columns]
        writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
    assert read(file.getvalue(), "requests.csv") == asked


def test_origins_are_physical_lines() -> None:
    listed = '[\n{"source": "a", "dest": "b"},\n\n {"source": "c",\n "dest": "d"}]'
    assert [r.origin.rsplit(":", 1)[1] for r in read(listed)] == ["2", "4"]
    table = 'source,dest,templates\na,b,"[""x {}"",\n""y {}""]"\n\nc,d,\n'
    assert [r.origin.rsplit(":", 1)[1] for r in read(table, "x.csv")] == ["2", "5"]


def test_defaults_hold_where_a_request_is_silent() -> None:
    content = {
        "defaults": {"task": "erase", "dest": "art", "templates": "artist", "seed": 7},
        "requests": [{"source": "Monet"}, {"source": "Klee", "dest": "a photo", "seed": 1}],
    }
    monet, klee = read(json.dumps(content))
    assert monet == EditRequest("Monet", "art", ARTIST_TEMPLATES, "erase", 7)
    assert klee == EditRequest("Klee", "a photo", ARTIST_TEMPLATES, "erase", 1)


def test_templates_come_from_the_request_the_caller_or_the_task() -> None:
    content = (
        "source,dest,task,templates\ncat,dog,,\ncow,pig,update,see {} | {}!\n"
        "a boss,a male boss|a female boss,debias,\n"
    )
    cat, cow, boss = read(content, "r.csv")
    assert cat.templates == OBJECT_TEMPLATES
    assert cow.templates == ("see {}", "{}!")
    assert boss.templates == DEBIAS_TEMPLATES
    assert (boss.dest, boss.ratios) == (("a male boss", "a female boss"), (0.5, 0.5))
    cat, cow, boss = read(content, "r.csv", default_templates=("my {}",))
    assert [r.templates for r in (cat, cow, boss)] == [("my {}",), ("see {}", "{}!"), ("my {}",)]


def test_erase_needs_no_destination() -> None:
    assert read('[{"source": "Monet", "task": "erase"}]')[0].dest == ""
    assert read("source,dest,task\nMonet,,erase\n", "r.csv")[0].dest == ""


def test_null_and_blank_fields_are_left_out() -> None:
    assert read('[{"source": "a", "dest": "b", "seed_train": null, "weight": null}]') == read(
        "source,dest,seed,weight\na,b,,\n", "r.csv"
    )


def test_one_object_is_a_manifest_of_one() -> None:
    assert read("source: a\ndest: b\n", "one.yaml") == read('[{"source": "a", "dest": "b"}]')


def test_all_failures_of_a_file_come_together_with_their_lines() -> None:
    content = """source,dest,templates,seed,weight
cat,dog,a photo,1,1
"two
lines",,{},x,1
[EOS],a,{} {},-1,0
fine,fine too,,,
,b,,1.5,many
"""
    assert errors(content, "r.csv") == [
        "r.csv:2: templates: has no slot {} ('a photo') — write exactly one {} for the name, "
        "or a set: object, artist, debias",
        "r.csv:3: seed: is text, not an integer ('x') — give an integer",
        "r.csv:3: dest: is empty ('') — give the concept's name",
        "r.csv:5: source: global edits are not supported ('[EOS]') — name a concept instead",
        "r.csv:5: templates: has 2 slots ('{} {}') — write exactly one {} for the name",
        "r.csv:5: seed: is not a seed (-1) — give an integer from 0 to 4294967295",
        "r.csv:5: weight: is not a positive number (0.0) — give a number > 0",
        "r.csv:7: seed: is text, not an integer ('1.5') — give an integer",
        "r.csv:7: weight: is not a number ('many') — give a number",
        "r.csv:7: source: is empty ('') — give the concept's name",
    ]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("r.json", '[{"source": "a"}]', "r.json:1: dest: is missing (None)"),
        ("r.json", '[{"dest": "a"},\n{"source": "", "dest": "b"}]', "r.json:1: source: is missing"),
        ("r.json", '[\n{"source": "a", "dst": "b"}]', "r.json:2: dst: is no request field ('b') — "
         "did you mean dest?"),
        ("r.json", '[{"source": 7, "dest": "b"}]', "r.json:1: source: is a number, not text (7)"),
        ("r.json", '[{"source": ["a"], "dest": "b"}]', "r.json:1: source: is a list, not text"),
        ("r.json", '[{"source": "a", "dest": "b", "prompts": ["x {}"], "templates": ["y {}"]}]',
         "r.json:1: templates: is templates a second time"),
        ("r.json", '[{"source": "a", "dest": "b", "prompts": ["x"]}]',
         "r.json:1: prompts: has no slot {} ('x')"),
        ("r.json", '[{"source": "a", "dest": "b", "templates": [1]}]',
         "r.json:1: templates: holds a number, not text"),
        ("r.json", '[{"source": "a", "dest": "b", "task": "destroy"}]',
         "r.json:1: task: is unknown ('destroy') — choose one of update, erase, rectify, debias"),
        ("r.json", '[{"source": "a", "dest": "b", "weight": NaN}]',
         "r.json:1: weight: is not a positive number (nan)"),
        ("r.json", '[{"source": "a", "dest": "b", "seed": true}]',
         "r.json:1: seed: is a yes/no value, not an integer (True)"),
        ("r.json", '[{"source": "a", "dest": "b"}, "c"]', "r.json:1: requests: entry 2 is not an"),
        ("r.json", '{"requests": {}}', "r.json:1: requests: is not a list"),
        ("r.json", '{"requests": []}', "r.json:1: file: holds no edit request"),
        ("r.json", '{"requests": [{"source": "a", "dest": "b"}], "default": {}}',
         "r.json:1: default: is no manifest key"),
        ("r.json", '{"defaults": 3, "requests": [{"source": "a", "dest": "b"}]}',
         "r.json:1: defaults: is not an object (3)"),
        ("r.json", "[]", "r.json:1: file: holds no edit request"),
        ("r.json", "[1, 2]", "r.json:1: requests: entry 1 is not an object (1)"),
        ("r.json", '{"tench": 0, "hen": 8}', "r.json:1: file: is no known kind of request file "
         "('an object with keys tench, hen')"),
        ("r.json", '[{"prompt": "x"}]', "r.json:1: file: is no known kind of request file"),
        ("r.txt", "Monet\nKlee\n", "r.txt:1: file: is no known kind of request file "
         "('columns Monet')"),
        ("r.yaml", "3\n", "r.yaml:1: file: is no known kind of request file ('columns 3')"),
        ("r.yaml", "- source: no\n  dest: b\n", "r.yaml:1: source: is a yes/no value, not text"),
        ("r.yaml", "- source: a\n  dest: b\n  templates:\n  - {}\n",
         "r.yaml:3: templates: has a bare {}, which YAML reads as an object"),
        ("r.yaml", "defaults:\n  seed: x\nrequests:\n- {source: a, dest: b}\n",
         "r.yaml:2: seed: is text, not an integer ('x')"),
        ("r.csv", "source,dest,task\na,[1,debias\n", "r.csv:2: dest: is not a list"),
        ("r.csv", "source,dest,task\na,b,debias\n", "r.csv:2: dest: debias needs at least two"),
        ("r.csv", "source,dest\n", "r.csv:1: file: holds no edit request"),
        ("r.csv", "source,dest,colour\na,b,c\n", "r.csv:1: colour: is no request field ('column')"),
    ],
)  # fmt: skip
def test_a_failure_is_one_line_that_says_where_what_and_how(
    name: str, content: str, line: str
) -> None:
    found = errors(content, name)
    assert found[0].startswith(line)
    assert all(" — " in one for one in found)


def test_a_bad_field_does_not_hide_or_invent_other_failures() -> None:
    rest = '"seeds": [1, 2], "weight": -1}'
    start = '[{"source": 3, "dest": ["a", "b", "c"], "ratios": [0.5, 0.5], "task": '
    unread = errors(start + '"x", "templates": [4], ' + rest + "]")
    assert [line.split(" (")[0] for line in unread] == [
        "requests.json:1: source: is a number, not text",
        "requests.json:1: task: is unknown",
        "requests.json:1: templates: holds a number, not text",
        "requests.json:1: weight: is not a positive number",
    ]
    assert [line.split(" (")[0] for line in errors(start + '"debias", ' + rest + "]")] == [
        "requests.json:1: source: is a number, not text",
        "requests.json:1: ratios: has the wrong length",
        "requests.json:1: seeds: has 2 seeds",
        "requests.json:1: weight: is not a positive number",
    ]


def test_columns_without_a_name_are_skipped() -> None:
    assert read(",source,dest\n0,a,b\n", "r.csv") == read("source,dest\na,b\n", "r.csv")


def test_failures_of_defaults_are_told_once() -> None:
    content = "defaults:\n  seed: x\nrequests:\n- {source: a, dest: b}\n- {source: c, dest: d}\n"
    assert len(errors(content, "r.yaml")) == 1
