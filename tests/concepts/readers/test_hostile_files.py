"""Files that broke readers, or were read as something else without a word, and random ones."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.concepts.readers.implicit import read_implicit
from emcid_jax.concepts.readers.manifests import read_requests
from emcid_jax.concepts.readers.texts import PROMPT_COLUMNS, read_names, read_texts
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.evaluation.benchmarks.aice.holdout import read_holdout
from emcid_jax.evaluation.benchmarks.artists import read_artists
from emcid_jax.evaluation.judges.labels import label_groups
from emcid_jax.runtime.errors import UserError


def read(folder: Path, content: str | bytes, name: str = "file") -> list[EditRequest]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_requests(path)


def pairs(requests: Sequence[EditRequest]) -> list[tuple[str, object]]:
    return [(request.source, request.dest) for request in requests]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition("file:")[2] for record in caplog.records]


TENCH = [("tench", "goldfish"), ("tiger cat", "tabby")]


@pytest.mark.parametrize(
    "content",
    [
        "source,dest,,\r\ntench,goldfish,,\r\ntiger cat,tabby,,\r\n",
        "source,dest,,\r\ntench,goldfish\r\ntiger cat,tabby,,,,\r\n",
        "source,dest\rtench,goldfish\r\rtiger cat,tabby",
        '\ufeff"source";"dest"\ntench;goldfish\n"tiger cat";tabby\n',
        "source\tdest\ntench\tgoldfish\ntiger cat\ttabby\n",
        '{"source": "tench", "dest": "goldfish"}\n\n{"source": "tiger cat", "dest": "tabby"}\n',
        '[{"source": "tench", "dest": "goldfish"},\r {"source": "tiger cat", "dest": "tabby"}]',
        "{requests: [{source: tench, dest: goldfish}, {source: tiger cat, dest: tabby}]}",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_same_requests_however_they_are_written(
    tmp_path: Path, content: str, encoding: str
) -> None:
    for name in ("file", "file.csv", "file.json", "file.yaml"):
        assert pairs(read(tmp_path, content.encode(encoding), name)) == TENCH


@pytest.mark.parametrize(
    ("content", "assumed", "source", "dest"),
    [
        ("source;dest\na;b\n", "1: values are separated by semicolons", "a", "b"),
        (
            '["Cassette Player",\n"Chain Saw"]',
            "1: a bare list of names is taken as artists, erased towards 'art'",
            "Cassette Player",
            "art",
        ),
        (
            "source,dest\na nurse,a female nurse|a male nurse\nb,c|d\n",
            "2 (and 1 more lines): dest: a bar without a task is part of the name",
            "a nurse",
            "a female nurse|a male nurse",
        ),
        (
            "source,dest\ntench\u200b,\u2060 goldfish\n",
            "2: source: invisible characters at the ends of a name are dropped",
            "tench",
            "goldfish",
        ),
        (
            "source,dest\nti\u00adger,cat\n",
            r"2: source: 'ti\xadger' holds an invisible character (U+00AD), which stays in it",
            "ti\u00adger",
            "cat",
        ),
        ("source,dest,\na,b,x\n", "1: columns without a name are not read", "a", "b"),
    ],
)
def test_what_is_assumed_is_said(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: str,
    assumed: str,
    source: str,
    dest: str,
) -> None:
    with caplog.at_level(logging.WARNING):
        first = read(tmp_path, content)[0]
    assert (first.source, first.dest) == (source, dest)
    assert any(line.startswith(assumed) for line in said(caplog))


DEBIAS = "old,female,validation,ex1,ex2,ex3,ex4,ex5\na,b,c,d,e,f,g,h\n"
AICE = "source,dest,prompts,seeds,source id,dest id\na,b,{},[],1,2\n"
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)
)
ALIASES = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"source": "a\\ud800",\n "dest": "b"}]', "1: text: holds half of a surrogate pair"),
        ('- source: "a\\ud800"\n  dest: b\n', "1: text: holds half of a surrogate pair"),
        ("source,dest\nc,d\na\x1bb,b\n", "3: source: holds a control character (U+001B)"),
        ("- source: a\n  dest: b\x1b\n", "2: yaml: special characters are not allowed"),
        ('[{"source": "a", "dest": "b",\n"seed": 1' + "0" * 400 + "}]", "2: json: is a number of"),
        ("- source: a\n  dest: b\n  seed: 0x1" + "0" * 400, "3: number: is too long"),
        ("source,dest,weight\na,b,1" + "0" * 400, "2: weight: is not a positive number (inf)"),
        ("- source: a\n  dest: !!bool x\n", "2: yaml: cannot be of the tag !!bool ('x')"),
        ("- !!map [a]\n", "1: yaml: cannot be of the tag !!map"),
        ("- !!int x\n", "1: yaml: cannot be of the tag !!int ('x')"),
        ("- !!timestamp x\n", "1: yaml: cannot be of the tag !!timestamp"),
        ("- !!binary x\n", "1: yaml: cannot be of the tag !!binary"),
        ("requests: !!set {a, b}\n", "1: yaml: cannot be of the tag !!set"),
        ("- source: a\n- {<<: 3}\n", "2: yaml: expected a mapping or list of mappings"),
        ("requests:\n- &a [*a]\n", "2: yaml: is nested too deeply"),
        ("a: " + ":".join(["1"] * 400) + ".0\n", "1: yaml: cannot be read"),
        ("a: " + "[" * 65 + "]" * 65, "1: yaml: is nested too deeply"),
        ("a: " + "[" * 5_000, "1: yaml: is nested too deeply"),
        (ALIASES, "7: yaml: aliases make"),
        (MERGES, "7: yaml: aliases make"),
        (DEBIAS, "1: file: is no known kind of request file"),
        (AICE.format("1" + "+1" * 30_000), "2: prompts: has no slot {}"),
        (AICE.format("[" + "-" * 60_000 + "1]"), "2: prompts: is not a list"),
        (AICE.format("[" * 60_000), "2: prompts: is not a list"),
        (AICE.format("\"['a' '{}']\""), "2: prompts: is not a list"),
        ("source,dest\nb,c\n\u200b,b\n", "3: source: is empty ('')"),
        ("caf\xe9,b\n".encode("latin-1"), "1: encoding: is not UTF-8"),
        ("source,dest\n" + "x" * 200_000 + ",b\n", "2: csv: field larger than field limit"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_line(
    tmp_path: Path, content: str | bytes, line: str
) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    found = [one.partition("file:")[2] for one in str(caught.value).splitlines()]
    assert any(one.startswith(line) for one in found), found
    assert max(map(len, found)) < 500


WRITE: dict[str, Callable[[list[dict]], tuple[str, Callable[[int], int]]]] = {
    "json": lambda rows: ("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]", lambda i: i + 2),
    "jsonl": lambda rows: ("\n".join(map(json.dumps, rows)), lambda i: i + 1),
    "yaml": lambda rows: (
        "".join("- " + json.dumps(row) + "\n" for row in rows),
        lambda i: i + 1,
    ),
    "csv": lambda rows: (
        "source,dest,seed\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows),
        lambda i: i + 2,
    ),
}


@pytest.mark.parametrize("kind", WRITE)
def test_bad_requests_among_a_thousand_are_all_told_with_their_lines(
    tmp_path: Path, kind: str
) -> None:
    rows = [{"source": f"s{i}", "dest": f"d{i}", "seed": i} for i in range(1000)]
    bad = sorted(random.Random(0).sample(range(1000), 7))
    for i in bad:
        rows[i]["seed"] = -1 - i
    content, line = WRITE[kind](rows)
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    starts = [one.partition("file:")[2].split(" (")[0] for one in str(caught.value).splitlines()]
    assert starts == [f"{line(i)}: seed: is not a seed" for i in bad]


VALID = [
    'source,dest,task,templates\na,b,,\n"c, d",e|f,debias,"[\'a {}\', ""b {}""]"\n',
    '{"defaults": {"seed": 3}, "requests": [{"source": "a", "dest": ["b"], "task": "debias"}]}',
    "defaults: &d\n  seed: 3\nrequests:\n- <<: *d\n  source: a\n  dest: 2024-01-01\n",
    '{"caption": "a"}\n{"caption": "b\\u00e9"}\n',
    '["Monet", "Klee"]',
    "prompt,evaluation_seed,artist,type\nby Klee,1,Klee,erased\nby Mo,2,Mo,holdout\n",
    "old,new,positive1,gt1,negative1,gn1\na,b,c,d,e,f\n",
    '[{"class name": "hen", "class id": 0, "text prompt": "a {}", "random seed": "7"}]',
]
PIECES = st.sampled_from(
    [*"\"'[]{},:;|\t\n\r -#&*!%@<>=?\\0aé\x1b\x00\u2028\ufeff\u200b", "{}", "!!", "<<: ", "\\ud800",
     "source", "dest", "1e999", "NaN", "null", "- ", "---\n", "*d", "&d ", "\n\n", "9" * 400,
     "caption", "prompt"]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file with a few pieces put in, bytes changed, or its end cut off."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        text = text[:start] + draw(PIECES) + text[start + draw(st.integers(0, 3)) :]
    content = bytearray(text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))))
    if content and draw(st.booleans()):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@given(content=damaged() | st.lists(PIECES, max_size=12).map("".join).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_file_is_read_or_refused(place: Path, content: bytes) -> None:
    """Every reader, on anything: a result or one `UserError`, nothing else."""
    path = place / "file"
    path.write_bytes(content)
    labels = label_groups(["hen", "cock"])["object"]
    found = []
    for reader in (
        read_requests,
        read_implicit,
        read_artists,
        lambda path: read_holdout(path, labels),
        lambda path: read_texts(path, "captions", PROMPT_COLUMNS),
        lambda path: read_names(path, "names"),
    ):
        try:
            reader(path)
        except UserError as error:
            found.append(str(error))
    assert all(found)
