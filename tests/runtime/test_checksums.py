"""Checksums inside files: no byte can change unnoticed, and no text can pass for the field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.runtime import checksums as seals


def file(text: str) -> bytes:
    return json.dumps({"text": text, "checksum": seals.UNSEALED}).encode()


@given(st.text(), st.data())
def test_any_changed_byte_is_found(text: str, data: st.DataObject) -> None:
    content = seals.sealed(file(text))
    assert seals.is_intact(content)
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    assert not seals.is_intact(content[:place] + bytes([other]) + content[place + 1 :])
    assert not seals.is_intact(content[:-1])
    assert not seals.is_intact(content + b" ")


@pytest.mark.parametrize("text", [f'"checksum": "{seals.UNSEALED}"', '"checksum":"' + "a" * 64])
def test_text_of_a_user_is_not_the_field(text: str) -> None:
    content = seals.sealed(file(text))
    assert seals.is_intact(content)
    assert json.loads(content)["text"] == text
    assert json.loads(content)["checksum"] != seals.UNSEALED


def test_a_file_without_the_field_is_not_intact() -> None:
    assert not seals.is_intact(b"{}")
    with pytest.raises(ValueError, match="no field"):
        seals.sealed(b"{}")
