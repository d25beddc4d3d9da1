"""Subject spans: which tokens of a prompt are the concept's name, from tokenizer offsets.

The tokenizer is a fast one (`transformers.CLIPTokenizer`). Its offsets refer to the characters of
the prompt as given, before NFC, lower-casing and white-space collapsing, so a subject whose place
in the prompt is known has exact tokens whatever it is made of.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import fill
from emcid_jax.runtime.errors import Problem, UserError


class PromptRectangle(NamedTuple):
    """The prompts of a request list as one rectangle.

    Requests with fewer templates than others repeat their first prompt; `mask` is False there.
    """

    ids: Int[np.ndarray, "concept prompt token"]
    """int32 token ids, padded and cut to the tokenizer's `model_max_length`."""
    positions: Int[np.ndarray, "concept prompt"]
    """int32 position of the last token of the name."""
    mask: Bool[np.ndarray, "concept prompt"]
    """Which prompts count."""


class _Encoded(NamedTuple):
    ids: list[int]
    offsets: list[tuple[int, int]]


class _SpanError(Exception):
    """Why a subject has no span: problem and fix."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix


def subject_span(
    tokenizer: Any, prompt: str, subject: str, start_char: int | None = None
) -> tuple[int, int]:
    """Token range [start, end) of a subject, BOS counted; the edited token is `end - 1`.

    `start_char` is the character where the subject starts, as `templates.fill` gives it; without it
    the first word-aligned occurrence is taken, compared by NFC, lower case and white space. Tokens
    that the subject shares with punctuation of the prompt belong to it.

    Raises `UserError` for an empty or absent subject, one that is glued to letters of the prompt,
    cut off at `model_max_length`, or holds special tokens or characters the vocabulary lacks.
    """
    try:
        if start_char is None:
            start_char, end_char = _find(prompt, subject)
        else:
            end_char = start_char + len(subject)
            if start_char < 0 or prompt[start_char:end_char] != subject:
                raise _SpanError(f"does not stand at character {start_char}", "pass its start")
        return _span(tokenizer, _encode(tokenizer, [prompt])[0], prompt, start_char, end_char)
    except _SpanError as error:
        problem = Problem("subject", f"{error.problem} in {prompt!r}", subject, error.fix)
        raise UserError(problem.line("prompt")) from None


def source_prompts(tokenizer: Any, requests: Sequence[EditRequest]) -> PromptRectangle:
    """Templates filled with every request's source. Raises one `UserError` naming all failures."""
    return _rectangle(tokenizer, requests, "source", [request.source for request in requests])


def destination_prompts(
    tokenizer: Any, requests: Sequence[EditRequest], number: int = 0
) -> PromptRectangle:
    """Templates filled with destination `number` of every request (0 but for `debias`).

    An empty destination (of `erase`) gives the empty prompt, its position the end-of-text token.
    Raises one `UserError` naming all failures or the requests without that many destinations.
    """
    short = [request for request in requests if number >= len(request.dests)]
    if short:
        fix = "pass only requests with that many destinations"
        raise UserError(
            "\n".join(
                Problem("dest", f"has no number {number}", request.dest, fix).line(request.origin)
                for request in short
            )
        )
    return _rectangle(tokenizer, requests, "dest", [request.dests[number] for request in requests])


def _rectangle(
    tokenizer: Any, requests: Sequence[EditRequest], field: str, names: list[str]
) -> PromptRectangle:
    width = max((len(request.templates) for request in requests), default=0)
    length = _max_length(tokenizer)
    filled = [
        fill(template, name) if name else fill("", "")
        for request, name in zip(requests, names, strict=True)
        for template in request.templates
    ]
    encoded = iter(zip(filled, _encode(tokenizer, [item.prompt for item in filled]), strict=True))
    ids = np.empty((len(requests), width, length), np.int32)
    positions = np.empty((len(requests), width), np.int32)
    mask = np.zeros((len(requests), width), bool)
    failures: dict[str, None] = {}
    for row, (request, name) in enumerate(zip(requests, names, strict=True)):
        for column, template in enumerate(request.templates):
            (prompt, start, end), tokens = next(encoded)
            mask[row, column] = True
            ids[row, column] = _padded(tokenizer, tokens.ids, length)
            try:
                span = _span(tokenizer, tokens, prompt, start, end) if name else (1, 2)
                positions[row, column] = span[1] - 1
            except _SpanError as error:
                problem = f"{error.problem} in template {template!r}"
                failures[Problem(field, problem, name, error.fix).line(request.origin)] = None
        ids[row, len(request.templates) :] = ids[row, 0]
        positions[row, len(request.templates) :] = positions[row, 0]
    if failures:
        raise UserError("\n".join(failures))
    return PromptRectangle(ids, positions, mask)


def _encode(tokenizer: Any, prompts: list[str]) -> list[_Encoded]:
    """Token ids and character offsets of whole prompts, neither padded nor cut."""
    if not prompts:
        return []
    # verbose=False: prompts beyond the model's length are our own error, with their origin.
    batch = tokenizer(prompts, return_offsets_mapping=True, verbose=False)
    return [
        _Encoded(ids, offsets)
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True)
    ]


def _max_length(tokenizer: Any) -> int:
    length = tokenizer.model_max_length
    # transformers stands in 1e30 for a length the tokenizer's files do not give.
    if length > 2**20:
        fix = "write model_max_length in tokenizer_config.json"
        raise UserError(Problem("model_max_length", "is missing", length, fix).line("tokenizer"))
    return int(length)


def _padded(tokenizer: Any, ids: list[int], length: int) -> list[int]:
    """The row the pipeline feeds the model: cut with the end token kept, or padded."""
    if len(ids) > length:
        return [*ids[: length - 1], ids[-1]]
    return [*ids, *([tokenizer.pad_token_id] * (length - len(ids)))]


def _span(tokenizer: Any, encoded: _Encoded, prompt: str, start: int, end: int) -> tuple[int, int]:
    """Tokens that overlap the characters [start, end) of the prompt."""
    if not prompt[start:end].strip():
        raise _SpanError("is empty", "give the concept's name")
    for left, right in ((start - 1, start), (end - 1, end)):
        if left >= 0 and right < len(prompt) and _glued(prompt[left], prompt[right]):
            raise _SpanError("is glued to another word", "put a space or punctuation between them")
    inside = [
        index
        for index, (first, last) in enumerate(encoded.offsets)
        if first < end and last > start and last > first
    ]
    if not inside:
        raise _SpanError("has no token of its own", "use characters the tokenizer knows")
    # CLIP's unknown token is its end token, at which the model's pooled state is read.
    specials = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    if specials & set(encoded.ids[1 : inside[-1] + 1]):
        problem = "stands with a special token or a character the vocabulary lacks"
        raise _SpanError(problem, "remove that character")
    length = _max_length(tokenizer)
    if inside[-1] > length - 2:
        problem = f"is cut off: its last token is {inside[-1]}, the model reads {length - 2}"
        raise _SpanError(problem, "shorten the template or the name")
    return inside[0], inside[-1] + 1


def _glued(left: str, right: str) -> bool:
    """Whether two neighbours belong to one word: letters, or a mark on whatever precedes it."""
    kinds = unicodedata.category(left)[0], unicodedata.category(right)[0]
    return kinds[1] == "M" or (kinds[0] in "LM" and kinds[1] == "L")


def _find(prompt: str, subject: str) -> tuple[int, int]:
    """First word-aligned range of characters that reads like the subject."""
    wanted = _folded(subject)
    if not wanted:
        raise _SpanError("is empty", "give the concept's name")
    borders = list(_borders(prompt))
    for start in borders:
        for end in borders:
            part = prompt[start:end]
            if part[:1].strip() and part[-1:].strip() and _folded(part) == wanted:
                return start, end
    raise _SpanError("does not occur as whole words", "name it as the prompt does")


def _borders(prompt: str) -> Iterator[int]:
    for index in range(len(prompt) + 1):
        if not 0 < index < len(prompt) or not _glued(prompt[index - 1], prompt[index]):
            yield index


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())
