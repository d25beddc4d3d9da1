"""The oracle decodes every token to its bytes and counts them; it never sees an offset."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import emcid_jax
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.spans import destination_prompts, source_prompts, subject_span
from emcid_jax.concepts.templates import ARTIST_TEMPLATES, OBJECT_TEMPLATES, fill
from emcid_jax.runtime.errors import UserError

SPRITES = Path(emcid_jax.__file__).parent / "sprites" / "data"


def byte_of_letter() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the rest is moved to 256 on."""
    same = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in same]
    return {chr(b): b for b in same} | {chr(256 + i): b for i, b in enumerate(moved)}


LETTERS = byte_of_letter()


def token_bytes(token: str) -> bytes:
    return bytes(LETTERS[letter] for letter in token.removesuffix("</w>"))


def visible(text: str) -> bytes:
    """The bytes the tokenizer keeps: NFC, lower case by character, no white space."""
    composed = unicodedata.normalize("NFC", text)
    return re.sub(r"\s+", "", "".join(letter.lower() for letter in composed)).encode()


def brute_force(tokenizer: Any, prompt: str, start: int, end: int) -> tuple[int, int]:
    """Tokens whose decoded bytes overlap the subject's bytes."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])[1:-1]
    assert b"".join(map(token_bytes, tokens)) == visible(prompt)
    first = len(visible(prompt[:start]))
    last = first + len(visible(prompt[start:end]))
    borders = np.cumsum([0, *(len(token_bytes(token)) for token in tokens)])
    inside = [i for i in range(len(tokens)) if borders[i] < last and borders[i + 1] > first]
    return inside[0] + 1, inside[-1] + 2


def request(source: str, *templates: str, dest: Any = "dog", **fields: Any) -> EditRequest:
    return EditRequest(source, dest, templates or ("a {}",), **fields)


def words(tokenizer: Any, prompt: str, span: tuple[int, int]) -> str:
    """The text of a span."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])[slice(*span)]
    return b"".join(token_bytes(token) + b" " * token.endswith("</w>") for token in tokens).decode()


def test_the_tokenizer_normalises_as_clip_does(tokenizer: Any) -> None:
    same = ["A  Café\n", "a cafe\u0301", " a\tCAFÉ "]
    rows = [tokenizer(text)["input_ids"] for text in same]
    assert rows[0] == rows[1] == rows[2]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("ń cat's 42")["input_ids"])
    assert tokens[1:3] == ["Å", "Ħ</w>"]
    assert [t for t in tokens if t.endswith("</w>")][-2:] == ["4</w>", "2</w>"]


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("style of the art of {}", "art", "art "),
        ("{} art", "Art", "art "),
        ("a starfish and a {}", "star", "star "),
        ("the {}'s distinctive jaw", "cat", "cat "),
        ("({})", "Great White Shark", "great white shark "),
        ("painting by {}", "Zdzisław Beksiński", "zdzisław beksiński "),
        ("{}-like", "Piotr Jabłoński", "piotr jabłoński "),
        ("style of {}", "Georgia O’Keeffe", "georgia o ’ keeffe "),
        ("style of {}", "Georgia O'Keeffe", "georgia o ' keeffe "),
        ("style of {}!", "Jakub Ro\u0301z\u0307alski", "jakub różalski "),
        ("a  {}\tx", "great  white\n shark", "great white shark "),
        ("{}", " cat ", "cat "),
        ("{} {{}}", "{x}", "{ x } "),
        ("a {} x", "\U0001f600", "\U0001f600 "),
        ("a {} x", "1984", "1 9 8 4 "),
        ("{} x", "İstanbul", "i ̇ stanbul "),
    ],
)
def test_spans_of_known_names(tokenizer: Any, template: str, name: str, text: str) -> None:
    prompt, start, end = fill(template, name)
    span = subject_span(tokenizer, prompt, name, start)
    assert words(tokenizer, prompt, span) == text
    assert span == brute_force(tokenizer, prompt, start, end)


def test_a_name_that_occurs_before_is_taken_where_it_is_filled_in(tokenizer: Any) -> None:
    prompt, start, _ = fill("cat, cat and {}", "cat")
    assert subject_span(tokenizer, prompt, "cat", start) == (5, 6)
    assert subject_span(tokenizer, prompt, "cat") == (1, 2)


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("a startled star", "star", "star "),
        ("the art of a cart, art", "Art", "art "),
        ("text by <artist>", "artist", "artist "),
        ("by Gustave  Dore\u0301.", "gustave doré", "gustave doré "),
        ("GEORGIA O’KEEFFE'S", "Georgia O’Keeffe", "georgia o ’ keeffe "),
    ],
)
def test_search_is_word_aligned(tokenizer: Any, prompt: str, subject: str, text: str) -> None:
    assert words(tokenizer, prompt, subject_span(tokenizer, prompt, subject)) == text


name_words = st.text(
    st.sampled_from("aeZtrsłńżóéüİß0’'.-&ñŌ\u0301\U0001f600日ा")
    | st.characters(categories=["L", "N"], max_codepoint=0x2FFF),
    min_size=1,
    max_size=8,
)
random_names = st.lists(name_words, min_size=1, max_size=3).flatmap(
    lambda parts: st.sampled_from([" ", "  ", "\n", "\u00a0"]).map(lambda gap: gap.join(parts))
)
contexts = st.text(st.sampled_from("art of star é'’.,-( )“”2\u0301\U0001f600"), max_size=12)


@given(before=contexts, after=contexts, name=random_names, form=st.sampled_from(["NFC", "NFD"]))
@settings(max_examples=300, deadline=None)
def test_random_names_in_random_templates(
    tokenizer: Any, before: str, after: str, name: str, form: str
) -> None:
    prompt, start, end = fill(before + "{}" + after, unicodedata.normalize(form, name))
    name = prompt[start:end]
    # Composition across the name's border, and hence its own bytes, are not defined otherwise.
    assume(visible(prompt) == visible(before) + visible(name) + visible(after))
    expected = brute_force(tokenizer, prompt, start, end)
    if joined(before[-1:], name[:1]) or joined(name[-1:], after[:1]):
        with pytest.raises(UserError, match="is glued to another word"):
            subject_span(tokenizer, prompt, name, start)
    elif expected[1] > 76:
        with pytest.raises(UserError, match="is cut off"):
            subject_span(tokenizer, prompt, name, start)
    else:
        assert subject_span(tokenizer, prompt, name, start) == expected


def joined(left: str, right: str) -> bool:
    """Whether no word ends between two characters: letters, or anything and a combining mark."""
    if not left or not right:
        return False
    kinds = unicodedata.category(left)[0] + unicodedata.category(right)[0]
    return kinds[1] == "M" or kinds in ("LL", "ML")


@pytest.mark.parametrize(
    ("prompt", "subject", "start", "part"),
    [
        ("a photo of ", "", 11, "is empty"),
        ("a photo of   ", "  ", 11, "is empty"),
        ("a photo", " ", None, "is empty"),
        ("a photo of cats", "cat", 11, "is glued to another word"),
        ("concat", "cat", 3, "is glued to another word"),
        ("a cafe\u0301", "cafe", 2, "is glued to another word"),
        ("a photo of cats", "cat", None, "does not occur as whole words"),
        ("a photo of art", "cat", 11, "does not stand at character 11"),
        ("<|endoftext|> cat", "cat", 14, "special token"),
        ("a <|startoftext|> x", "<|startoftext|>", 2, "special token"),
    ],
)
def test_subjects_without_a_span_are_one_clear_line(
    tokenizer: Any, prompt: str, subject: str, start: int | None, part: str
) -> None:
    with pytest.raises(UserError) as caught:
        subject_span(tokenizer, prompt, subject, start)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("prompt: subject: ")
    assert part in line
    assert " — " in line


def test_characters_the_vocabulary_lacks_are_refused(tokenizer: Any) -> None:
    from transformers import CLIPTokenizer

    vocab = {k: v for k, v in tokenizer.get_vocab().items() if k != "Ħ</w>"}
    vocab = {token: i for i, token in enumerate(vocab)}
    poor = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)
    prompt, start, _ = fill("by {}", "Baszyń")
    assert poor.eos_token_id in poor(prompt)["input_ids"][:-1]
    with pytest.raises(UserError, match="a character the vocabulary lacks"):
        subject_span(poor, prompt, "Baszyń", start)


def test_characters_that_normalise_away_are_refused(tokenizer: Any) -> None:
    from tokenizers import normalizers
    from transformers import CLIPTokenizer

    stripping = CLIPTokenizer(vocab=tokenizer.get_vocab(), merges=[], model_max_length=77)
    backend = stripping.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Replace("*", ""), backend.normalizer])
    with pytest.raises(UserError, match="has no token of its own"):
        subject_span(stripping, "a ** of", "**", 2)


def test_subjects_may_fill_the_row_and_not_more(short_tokenizer: Any) -> None:
    prompt, start, _ = fill("1 2 3 4 5 6 7 {} and words nobody reads", "89")
    assert subject_span(short_tokenizer, prompt, "89", start) == (8, 10)
    prompt, start, _ = fill("1 2 3 4 5 6 7 8 {} x", "90")
    assert subject_span(short_tokenizer, prompt, "90", start) == (9, 11)  # 11 is the end token
    prompt, start, _ = fill("1 2 3 4 5 6 7 8 9 {}", "01")
    with pytest.raises(UserError, match="is cut off: its last token is 11, the model reads 10"):
        subject_span(short_tokenizer, prompt, "01", start)


def test_a_tokenizer_without_length_is_refused(tokenizer: Any) -> None:
    from transformers import CLIPTokenizer

    endless = CLIPTokenizer(vocab=tokenizer.get_vocab(), merges=[])
    with pytest.raises(UserError, match="model_max_length: is missing"):
        source_prompts(endless, [request("cat")])


@pytest.mark.parametrize("which", ["tokenizer", "short_tokenizer"])
def test_rectangles_hold_what_the_pipeline_feeds_the_model(
    which: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(which)
    asked = [
        EditRequest("cat", "a great dog", ("a {}", "{} and 1 2 3 4 5 6 7 8 9 0 1 2", "{}!")),
        EditRequest("Doré", "star", ("style of {}",)),
    ]
    for rectangle, names in (
        (source_prompts(tokenizer, asked), ["cat", "Doré"]),
        (destination_prompts(tokenizer, asked), ["a great dog", "star"]),
    ):
        np.testing.assert_array_equal(rectangle.mask, [[1, 1, 1], [1, 0, 0]])
        for row, (one, name) in enumerate(zip(asked, names, strict=True)):
            for column in range(3):
                template = one.templates[column if rectangle.mask[row, column] else 0]
                prompt, start, end = fill(template, name)
                fed = tokenizer(
                    prompt,
                    padding="max_length",
                    truncation=True,
                    max_length=tokenizer.model_max_length,
                )["input_ids"]
                np.testing.assert_array_equal(rectangle.ids[row, column], fed)
                _, stop = brute_force(tokenizer, prompt, start, end)
                assert rectangle.positions[row, column] == stop - 1


def test_destinations_of_debias_are_taken_by_number(tokenizer: Any) -> None:
    boss = request("boss", dest=("a female boss", "a male boss"), task="debias", ratios=(0.5, 0.5))
    for number, name in enumerate(boss.dests):
        expected = source_prompts(tokenizer, [request(name)])
        actual = destination_prompts(tokenizer, [boss], number)
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="dest: has no number 1"):
        destination_prompts(tokenizer, [boss, request("cat")], 1)


def test_an_empty_destination_is_the_empty_prompt(tokenizer: Any) -> None:
    ids, positions, mask = destination_prompts(tokenizer, [request("cat", dest="", task="erase")])
    fed = tokenizer("", padding="max_length", max_length=77)["input_ids"]
    np.testing.assert_array_equal(ids[0, 0], fed)
    assert ids[0, 0, positions[0, 0]] == tokenizer.eos_token_id
    assert mask.all()


def test_no_requests_give_an_empty_rectangle(tokenizer: Any) -> None:
    assert source_prompts(tokenizer, []).ids.shape == (0, 0, 77)


def test_all_failures_are_raised_together_with_their_origins(short_tokenizer: Any) -> None:
    asked = [
        request("cat", "x and {}", origin="m.json:2"),
        request("cat", "{}s", "con{}", origin="m.json:3"),
        request("1 2 3 4 5 6 7 8 9 0", "{}", "a b {}", origin="m.json:9"),
    ]
    with pytest.raises(UserError) as caught:
        source_prompts(short_tokenizer, asked)
    lines = str(caught.value).splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "m.json:3: source: is glued to another word in template '{}s'",
        "m.json:3: source: is glued to another word in template 'con{}'",
        "m.json:9: source: is cut off: its last token is 12, the model reads 10"
        " in template 'a b {}'",
    ]


def check_all(tokenizer: Any, names: list[str], templates: tuple[str, ...]) -> None:
    asked = [request(name, *templates, dest="nothing like it") for name in names]
    rectangle = source_prompts(tokenizer, asked)
    assert rectangle.mask.all()
    for row, name in enumerate(names):
        for column, template in enumerate(templates):
            prompt, start, end = fill(template, name)
            _, stop = brute_force(tokenizer, prompt, start, end)
            assert rectangle.positions[row, column] == stop - 1, (name, template)


def test_every_artist_of_the_sprite_world(tokenizer: Any) -> None:
    artists = (SPRITES / "artists.txt").read_text("utf8").splitlines()
    assert len(artists) == 1100
    check_all(tokenizer, artists, ARTIST_TEMPLATES)


def test_every_imagenet_lemma(tokenizer: Any) -> None:
    lines = (SPRITES / "objects.jsonl").read_text("utf8").splitlines()
    lemmas = [name for line in lines for name in json.loads(line)["names"]]
    assert len(lemmas) == 1860
    check_all(tokenizer, lemmas, OBJECT_TEMPLATES)
