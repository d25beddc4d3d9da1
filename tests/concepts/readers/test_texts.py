from __future__ import annotations

import csv
import io
import json
import logging
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.concepts.readers.texts import (
    CAPTION_COLUMNS,
    PROMPT_COLUMNS,
    read_names,
    read_texts,
)
from emcid_jax.runtime.errors import UserError

CAPTIONS = ["a bus, red", "a café; two", "a third"]


def write(folder: Path, content: str, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def captions(path: Path) -> list[str]:
    return [one.text for one in read_texts(path, "moments.captions", CAPTION_COLUMNS)]


def as_csv(column: str, delimiter: str) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([["id", column], *([i, text] for i, text in enumerate(CAPTIONS))])
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(CAPTIONS),
        "\ufeff" + "\r\n\r\n".join(f" {one} " for one in CAPTIONS) + "\r\n",
        json.dumps(CAPTIONS),
        json.dumps(
            [{"image": "https://example.org", "caption": one} for one in CAPTIONS], indent=1
        ),
        json.dumps([{"prompt": one} for one in CAPTIONS]),
        "\n".join(json.dumps({"caption": one, "id": 1}) for one in CAPTIONS),
        "\n".join(json.dumps(one) for one in CAPTIONS),
        json.dumps({"info": {}, "annotations": [{"id": 1, "caption": one} for one in CAPTIONS]}),
        yaml.safe_dump(CAPTIONS, allow_unicode=True),
        *(as_csv(column, mark) for column in ("caption", "prompt") for mark in ",;\t"),
    ],
)
def test_captions_however_they_are_written(tmp_path: Path, content: str) -> None:
    for name in ("file", "file.txt"):
        assert captions(write(tmp_path, content, name)) == CAPTIONS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f", '[\n {\n  "caption": "a"\n },\n {\n  "text": "b"\n }\n]', "f:5: caption: is no text"),
        ("f", '[\n {\n  "caption": "a"\n },\n', "f:5: json: Expecting value"),
        ("f", '{"images": []}', "f:1: captions: holds no list"),
        ("f", '["a", 3]', "f:1: caption: is no text (3) — write text, or an object with caption"),
        ("f", '{"caption": "a"}\n{"caption": 2}\n[]\n', "f:2: caption: is no text"),
        ("f.csv", "id,text\n1,a\n", "f.csv:1: captions: is a table without a column caption or"),
        ("f.json", "a dog\n", "f.json:1: captions: is no json file ('a dog')"),
        ("f", 'id,caption\n1,"a\n', "f:2: csv: unexpected end of data"),
        ("f", "- a\n- [b\n", "f:3: yaml: "),
        ("f", '"a"\n"b" c"\n', "f:2: json: Extra data"),
    ],
)
def test_what_holds_no_captions_is_never_read_as_lines(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_texts(write(tmp_path, content, name), "captions", CAPTION_COLUMNS)
    assert message in str(caught.value)


def test_entries_keep_what_stands_beside_them(tmp_path: Path) -> None:
    table = write(tmp_path, "case,prompt,evaluation_seed\n0,a dog,7\n1, ,8\n2,snow,9\n")
    found = read_texts(table, "prompts", PROMPT_COLUMNS)
    assert [(one.text, one.line, one.fields["evaluation_seed"]) for one in found] == [
        ("a dog", 2, "7"),
        ("snow", 4, "9"),
    ]
    lines = read_texts(write(tmp_path, "\na\n\nb"), "prompts", PROMPT_COLUMNS)
    assert [one[:2] for one in lines] == [("a", 2), ("b", 4)]


def test_names_lose_what_nobody_sees(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = ["tabby", "tiger\u200bcat", "café"]
    for content in (
        "\ufefftabby\n\u200b tiger\u200bcat\n\u200b\ncafé\u2060\n",
        json.dumps(["tabby", "tiger\u200bcat", "\u200bcafé"]),
        "name,colour\ntabby\u200e,red\ntiger\u200bcat,\ncafé,blue\n",
        "name\ntabby\ntiger\u200bcat\ncafé\n",
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_names(write(tmp_path, content), "keep") == expected
        assert any("(U+200B), which stays in it" in one.getMessage() for one in caplog.records)
    with pytest.raises(UserError, match=r"file:3: name: holds a control character \(U\+001B\)"):
        read_names(write(tmp_path, "a\n\nb\x1b[0mc\n"), "keep")
    assert read_names(write(tmp_path, "a\nb\n", "names.csv"), "keep") == ["a", "b"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


visible = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"]), min_size=1, max_size=12
).map(lambda text: "x" + text + "y")


@given(entries=st.lists(visible, min_size=2, max_size=5), kind=st.integers(0, 4))
@settings(deadline=None)
def test_lists_of_texts_round_trip(place: Path, entries: list[str], kind: int) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=";").writerows([["n", "prompt"], *([1, one] for one in entries)])
    content = [
        json.dumps(entries),
        "\n".join(json.dumps({"caption": one}, ensure_ascii=False) for one in entries),
        file.getvalue(),
        "\r\n".join(entries),
        yaml.safe_dump([{"caption": one} for one in entries]),
    ][kind]
    assert captions(write(place, content)) == entries
