"""Whatever a name contains, a terminal shows it and does not obey it."""

from __future__ import annotations

import io
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.runtime import terminal
from emcid_jax.runtime.terminal import printable, show

HOSTILE = "red\x1b[31m \x07\u202egnp.exe \ud800 \u200b\x9b2J"
SEEN = r"red\x1b[31m \x07\u202egnp.exe \ud800 \u200b\x9b2J"


def test_what_commands_a_terminal_is_written_out() -> None:
    assert printable(HOSTILE) == SEEN
    assert printable("Émile Zolà — 猫\n\tdog") == "Émile Zolà — 猫\n\tdog"


@given(st.text(st.characters()))
def test_nothing_hidden_is_left(text: str) -> None:
    seen = printable(text)
    left = {c for c in seen if not c.isprintable() and unicodedata.category(c) != "Zs"}
    assert left <= {"\n", "\t"}
    assert printable(seen) == seen


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@given(text=st.text(st.characters()))
def test_every_stream_takes_every_text(encoding: str, text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
    show(text, stream)
    stream.seek(0)
    assert stream.read().endswith("\n")


def test_log_messages_are_printable_too(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        terminal.guard()
        terminal.guard()
        assert len(handler.filters) == 1
        logging.warning("not found: %s", HOSTILE)
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().err == f"not found: {SEEN}\n"
