import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from emcid_jax.sprites.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["a photo of a tench", "a great white shark's fin", "painting by Tove Jansson"] * 5
    train_tokenizer(texts, folder, vocab_size=600, max_length=16)
    return CLIPTokenizer.from_pretrained(folder)


def test_reads_as_a_clip_tokenizer(tokenizer):
    row = tokenizer("A tench's fin", padding="max_length").input_ids
    assert len(row) == 16
    assert row[0] == tokenizer.bos_token_id == len(tokenizer) - 2
    assert row[-1] == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.tokenize("A tench's fin") == ["a</w>", "tench</w>", "'s</w>", "fin</w>"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_text_is_spelled_in_bytes_and_comes_back(tokenizer, text):
    ids = tokenizer(text, truncation=False).input_ids
    assert all(0 <= i < len(tokenizer) for i in ids)
    back = tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False)
    normal = tokenizer.backend_tokenizer.normalizer.normalize_str(text)
    assert back.replace(" ", "") == normal.replace(" ", "")
