"""A prompt token by token, against the encoders' own states."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from emcid_jax.editing.diagnostics.token_shares import written_shares
from emcid_jax.explore.reading import read
from emcid_jax.explore.session import Session, solved
from emcid_jax.pipelines.pipeline import Pipeline, tokenize
from emcid_jax.runtime.errors import UserError


def states(pipeline: Pipeline, prompt: str) -> np.ndarray:
    ids = tokenize(pipeline.encoder.tokenizer, [prompt])
    params = {"params": pipeline.params["text_encoder"]}
    out = jax.jit(pipeline.encoder.model.apply)(params, ids)
    return np.asarray(out.last_hidden_state[0], np.float64)


def test_a_name_is_touched_at_its_last_token(session: Session, places: dict[str, int]) -> None:
    edited = solved(session, [1.0, 1.0, 1.0])
    prompt = "A photo of  a Female doctor"
    found = read(session, edited, prompt)
    assert found.tokens[-4:] == ("Female", "doctor", "end", "padding")
    assert "".join(found.tokens[:-2]) == prompt.replace(" ", "")
    last = found.tokens.index("doctor")
    base, other = states(session.pipeline, prompt), states(edited.pipeline, prompt)
    wanted = np.linalg.norm(other - base, axis=1) / np.linalg.norm(base, axis=1)
    np.testing.assert_allclose(found.changes[:-1], wanted[1 : 1 + last + 2], rtol=1e-3, atol=1e-5)
    assert found.changes[-1] == pytest.approx(wanted[1 + last + 2 :].max(), rel=1e-3)
    found = read(session, edited, "A photo of a female doctor")  # As the edit was made.
    (own,) = (one for one in found.touched if one.concept == places["a female doctor"])
    assert len(own.shares) == len(found.tokens)
    assert own.shares[found.tokens.index("doctor")] == pytest.approx(1.0, abs=0.2)
    most = [max(one.shares) for one in found.touched]
    assert most == sorted(most, reverse=True)
    assert min(most) >= 0.1


def test_of_two_encoders_all_that_the_denoiser_reads_counts(session_xl: Session) -> None:
    prompt = "A photo of dog"
    ids = tokenize(session_xl.pipeline.encoder.tokenizer, [prompt])
    edited = solved(session_xl, [1.0, 1.0, 1.0])
    assert edited.edit.keys() == edited.writers.keys() == {"text_encoder", "text_encoder_2"}

    def joined(pipeline: Pipeline) -> np.ndarray:
        rows = [
            jax.jit(one.model.apply)({"params": one.params}, one.repadded(ids)).hidden[-2]
            for one in pipeline.encoders
        ]
        return np.concatenate([np.asarray(x[0], np.float64) for x in rows], axis=1)

    found = read(session_xl, edited, prompt)
    assert found.tokens == ("A", "photo", "of", "dog", "end", "padding")
    base, other = joined(session_xl.pipeline), joined(edited.pipeline)
    wanted = np.linalg.norm(other - base, axis=1) / np.linalg.norm(base, axis=1)
    np.testing.assert_allclose(found.changes[:-1], wanted[1:6], rtol=1e-3, atol=1e-5)
    both = []
    for encoder in session_xl.pipeline.encoders:
        shares = written_shares(
            encoder, edited.writers[encoder.name], tokenize(encoder.tokenizer, [prompt])[0]
        )
        both.append(shares[4])
    assert not np.allclose(*both, atol=1e-3)
    for one in found.touched:
        assert one.shares[3] == pytest.approx(max(row[one.concept] for row in both))


def test_what_is_off_touches_nothing(session: Session, places: dict[str, int]) -> None:
    strengths = [1.0, 1.0, 1.0]
    strengths[places["dog"]] = 0.0
    found = read(session, solved(session, strengths), "A photo of dog")
    assert places["dog"] not in [one.concept for one in found.touched]
    found = read(session, solved(session, [0.0, 0.0, 0.0]), "A photo of dog")
    assert set(found.changes) == {0.0}
    assert found.touched == ()


def test_a_prompt_that_fills_the_model_has_no_padding(session: Session) -> None:
    edited = solved(session, [1.0, 1.0, 1.0])
    found = read(session, edited, " ".join(["dog"] * 30))
    assert found.tokens == (*["dog"] * 30, "end")
    with pytest.raises(UserError, match="prompt has 33 tokens, but the model reads 32, start and"):
        read(session, edited, " ".join(["dog"] * 31))
