"""Questions and their limits; pictures are those that the package draws, and are drawn once."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emcid_jax.explore import studio as module
from emcid_jax.explore.session import Session, solved
from emcid_jax.explore.studio import Question, Studio
from emcid_jax.pipelines.generate import generate
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.typed_values import section


def pixels(event: dict[str, Any]) -> np.ndarray:
    content = base64.b64decode(event["picture"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


def asked(**more: Any) -> Question:
    fields: dict[str, Any] = {"prompt": "A photo of dog", "strengths": (1.0, 1.0, 1.0), "steps": 2}
    return Question(**fields | more)


def test_both_models_draw_seed_after_seed_and_nothing_twice(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> np.ndarray:
        calls.append(args[2][0])
        return generate(*args, **options)

    monkeypatch.setattr(module, "generate", counted)
    studio = Studio(session)
    events = list(studio.draw(asked(seeds=(3, 5))))
    order = [("base", 3), ("edited", 3), ("base", 5), ("edited", 5)]
    assert [(event["model"], event["seed"]) for event in events] == order
    assert [(event["done"], event["total"]) for event in events] == [(i, 4) for i in range(1, 5)]
    assert events[-1]["left"] == 0.0
    models = session.pipeline, solved(session, (1.0, 1.0, 1.0)).pipeline
    for event, (_, seed) in zip(events, order, strict=True):
        pipeline = models[event["model"] == "edited"]
        wanted = generate(pipeline, ["A photo of dog"], [seed], steps=2, guidance=4.0)
        np.testing.assert_array_equal(pixels(event), wanted[0])
    assert not np.array_equal(pixels(events[0]), pixels(events[1]))
    assert len(calls) == 4
    # With everything off the edited model is the base, whose own picture is there already.
    off = list(studio.draw(asked(seeds=(3,), strengths=(0.0, 0.0, 0.0))))
    np.testing.assert_array_equal(pixels(off[1]), pixels(events[0]))
    assert calls[4:] == [3]
    again = list(studio.draw(asked(seeds=(3, 5))))
    assert [event["picture"] for event in again] == [event["picture"] for event in events]
    assert len(calls) == 5


def test_what_is_read_is_json(session: Session, places: dict[str, int]) -> None:
    found = Studio(session).read(asked())
    assert found["tokens"][-3:] == ("dog", "end", "padding")
    assert len(found["changes"]) == len(found["tokens"])
    assert found["touched"][0]["concept"] == places["dog"]
    assert found["active"] == 3


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": []}, "seeds are 0; give 1 to 16"),
        ({"seeds": [0] * 17}, "seeds are 17; give 1 to 16"),
        ({"seeds": [-1]}, r"question.seeds\[0\] is -1"),
        ({"seeds": ["x"]}, r"question.seeds\[0\] is 'x'; it must be a whole number"),
        ({"steps": 0}, "question.steps is 0"),
        ({"prompt": "a" * 4001}, "prompt has 4001 letters; give at most 4000"),
        ({"strengths": [1.0, -1.0, 1.0]}, r"question.strengths\[1\] is -1.0"),
        ({"path": "/etc"}, "question.path is unknown"),
    ],
)
def test_a_question_that_is_none_is_told_why(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        section({"prompt": "dog", "strengths": [1.0, 1.0, 1.0]} | wrong, Question, "question")
