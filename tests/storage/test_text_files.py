from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcid_jax.runtime.errors import Failures, UserError
from emcid_jax.storage.json_text import MAX_DEPTH, parse_json
from emcid_jax.storage.text_files import lines, read_json, read_json_object, read_text


def write(folder: Path, content: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_encodings_read_alike(tmp_path: Path, encoding: str) -> None:
    text = "tabby\r\nżółw\u2028 🐈\r"
    assert read_text(write(tmp_path, text.encode(encoding)), "names") == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"cat\ncaf\xe9\n",
            r"file:2: encoding: is not UTF-8 \(b'\\xe9'\) — save it as UTF-8",
        ),
        (b"\xff\xfea\x00\n", r"file:1: encoding: is not UTF-16"),
        (b"a\nb\0c", r"file:2: encoding: holds a NUL byte"),
        ("a\n".encode("utf-32"), r"file:1: encoding: holds a NUL byte"),
        ("tabby".encode("utf-16-le"), r"file:1: encoding: holds a NUL byte"),
    ],
)
def test_other_bytes_are_refused_with_their_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_text(write(tmp_path, content), "names")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, reason in (
        (pipe, ": is a pipe or device"),
        (Path("/dev/zero"), ": is a pipe or device"),
        (tmp_path, "names is .*: is a directory"),
        (tmp_path / "none", "names is .*: no such file or directory"),
        (tmp_path / ("x" * 300), ": file name too long"),
        ("a\0b", ": is no path"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            read_text(path, "names")
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="has 6 bytes, 5 are read at most"):
        read_text(write(tmp_path, b"abcdef"), "names", limit=5)


def test_lines_end_as_in_an_editor() -> None:
    assert list(lines("a\r\nb\r\rc\u2028d\x0b\n\n e ")) == [
        (1, "a"),
        (2, "b"),
        (4, "c\u2028d"),
        (6, "e"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a":\r\n 1,\r\n "a": 2}', "file:1: a: is given twice (2)"),
        ('[\n{"a": 1' + "0" * 400 + "}]", "file:2: json: is a number of 401 digits"),
        ("[1,\n1e999]", "file:2: json: is no finite number ('1e999')"),
        ('{"a":\n NaN}', "file:2: json: is no finite number ('NaN')"),
        ("[1,\r2,\r]", "file:3: json: Expecting value at column 1"),
        ('[\n"\\ud83d"]', "file:2: text: holds half of a surrogate pair"),
        ('[\n{"\\ud83d": 1}]', "file:2: text: holds half of a surrogate pair"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "file:1: json: is nested too deeply"),
        ("[" * 100_000, "file:1: json: is nested too deeply"),
        (" ", ": is empty — give a JSON file"),
        ("{} x", "file:1: json: Extra data at column 4"),
    ],
)
def test_json_is_strict(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_json(write(tmp_path, content.encode()), "model")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_json_object(tmp_path: Path) -> None:
    assert read_json_object(
        write(tmp_path, b'\xef\xbb\xbf{"a": [1.5, "\\ud83d\\ude00"]}'), "m"
    ) == {"a": [1.5, "😀"]}
    with pytest.raises(UserError, match=r"m: is no JSON object \(\[\]\)"):
        read_json_object(write(tmp_path, b"[]"), "m")


json_like = st.text(st.sampled_from('[]{}",:\\ud83e1.-ntf \r\n\x1b'), max_size=30)


@given(text=json_like | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps))
@settings(deadline=None)
def test_json_is_what_json_reads_or_a_problem(text: str) -> None:
    failures = Failures(Path("f"))
    value = parse_json(text, failures)
    if not failures:
        assert value == json.loads(text)
