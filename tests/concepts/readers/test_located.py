from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.concepts.readers.located import Table, parse
from emcid_jax.runtime.errors import Failures, UserError
from emcid_jax.storage.json_text import Record

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tree = st.recursive(
    text | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=12,
)


def parsed(content: str, name: str = "file") -> object:
    failures = Failures(Path(name))
    result = parse(content, failures)
    failures.raise_if_any()
    return result


def error_of(content: str, name: str = "file") -> str:
    with pytest.raises(UserError) as caught:
        parsed(content, name)
    return str(caught.value)


@given(value=st.lists(tree, max_size=3), indent=st.sampled_from([None, 1, "\t"]))
@settings(deadline=None)
def test_json_reads_what_json_reads(value: object, indent: int | str | None) -> None:
    assert parsed(json.dumps(value, indent=indent, ensure_ascii=False)) == value


@given(gaps=st.lists(st.sampled_from(["", "\n", "\n\n ", "\t"]), min_size=1, max_size=6))
@settings(deadline=None)
def test_json_objects_know_their_line(gaps: list[str]) -> None:
    content = (
        "[" + ",".join(f'{gap}{{"number":{i}, "x": "\\n"}}' for i, gap in enumerate(gaps)) + "]"
    )
    records = parsed(content)
    assert isinstance(records, list)
    for i, record in enumerate(records):
        assert isinstance(record, Record)
        before = content[: content.index(f'"number":{i},')]
        assert record.line == 1 + before.count("\n")
        assert record.line_of("number") == record.line


def test_yaml_reads_what_the_safe_loader_reads_with_the_line_of_each_key() -> None:
    content = (
        "# head\ndefaults: &base\n  seed: 3\n\nrequests:\n- source: cat\n  dest: dog\n"
        "-\n  <<: *base\n  source: żółw\n  templates:\n  - 'a {}'\n"
    )
    result = parsed(content)
    assert result == yaml.safe_load(content)
    assert isinstance(result, Record)
    first, second = result["requests"]
    assert (first.line, first.line_of("dest")) == (6, 7)
    assert (second.line_of("source"), second.line_of("templates")) == (10, 11)
    assert second.line_of("seed") == 3  # merged from where it stands


def test_yaml_cannot_build_python_objects() -> None:
    line = error_of("requests:\n- !!python/object/apply:os.system ['true']\n")
    assert line.startswith("file:2: yaml: cannot be of the tag !!python/object/apply:os.system")


@given(
    rows=st.lists(
        st.lists(
            st.text(st.sampled_from('ab,"\n\r |é\u2028\x0b'), max_size=5), min_size=2, max_size=2
        ),
        min_size=1,
        max_size=5,
    ),
    ending=st.sampled_from(["\n", "\r\n"]),
)
@settings(deadline=None)
def test_csv_rows_know_the_physical_line_they_start_on(rows: list[list[str]], ending: str) -> None:
    lines = ["source,dest"]
    starts, line = [], 2
    for row in rows:
        quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in row)
        lines.append(quoted)
        starts.append(line)
        # Line breaks as an editor counts them: \r\n is one, lone \r and \n are one each.
        line += 1 + quoted.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    table = parsed(ending.join(lines) + ending)
    assert isinstance(table, Table)
    kept = [i for i, row in enumerate(rows) if any(cell.strip() for cell in row)]
    assert [list(record.values()) for record in table.rows] == [rows[i] for i in kept]
    assert [record.line for record in table.rows] == [starts[i] for i in kept]


@pytest.mark.parametrize(
    ("name", "content", "start"),
    [
        ("f", "", "f:1: file: is empty"),
        ("f", " \n\n", "f:1: file: is empty"),
        ("f", '[\n {"source": "a",\n  "dest" "b"}]', "f:3: json: Expecting ':' delimiter"),
        ("f", '{"a": 1,\n "a": 2}', "f:1: a: is given twice (2)"),
        ("f", '["' + "x" * 10, "f:1: json: Unterminated string"),
        ("f", "[" * 100_000, "f:1: json: is nested too deeply"),
        ("f", "[1" + "0" * 5000 + "]", "f:1: json: is a number of 5001 digits"),
        ("f.yaml", "requests:\n- source: [a\n", "f.yaml:3: yaml: "),
        ("f.yaml", "a: 1\nb: 2\na: 3\n", "f.yaml:3: a: is given twice"),
        ("f.yaml", "a: 2024-13-45\n", "f.yaml:1: yaml: cannot be read"),
        ("f.yaml", "a: *nothing\n", "f.yaml:1: yaml: found undefined alias"),
        ("f", "source,dest\na,b\na,b,c\n", "f:3: row: has 3 values"),
        ("f", "source,dest\na\n", "f:2: row: has 1 values"),
        ("f", '\n\nsource,source\n"a\nb",c\n', "f:3: header: has a column twice ('source')"),
        ("f", 'source,dest\na,b\n\n"a\n,c\n', "f:4: csv: unexpected end of data"),
    ],
)
def test_syntax_errors_name_their_line(name: str, content: str, start: str) -> None:
    line = error_of(content, name)
    assert line.startswith(start)
    assert len(line.splitlines()) == 1
    assert " — " in line


def test_kind_of_text_is_found_from_the_text() -> None:
    assert parsed("- source: a, b\n  dest: c\n", "x.csv") == [{"source": "a, b", "dest": "c"}]
    assert isinstance(parsed('"source","dest"\na,b\n', "x.json"), Table)
    assert parsed('["a"]', "x.csv") == ["a"]
    assert parsed("{requests: [{source: a, dest: b}]}", "x.yml") == {
        "requests": [{"source": "a", "dest": "b"}]
    }


def test_equal_failures_count_once() -> None:
    with pytest.raises(UserError) as caught:
        parsed("source,dest\na\n\nb\n")
    assert len(str(caught.value).splitlines()) == 2
    assert csv.field_size_limit() == 131072  # untouched
