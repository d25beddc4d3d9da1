"""What the page asks for, answered from a session: prompts read, pictures drawn one after another.

One thing is computed at a time, whoever asks; results are kept for the next question.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any

from emcid_jax.config import NotNegative, Seed
from emcid_jax.evaluation.drawing.png import png
from emcid_jax.explore import reading
from emcid_jax.explore.kept import Kept
from emcid_jax.explore.session import Edited, Session, scaled, solved
from emcid_jax.pipelines.generate import generate
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.reporting.pages.render import data_uri
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.typed_values import Range

EDITS, PICTURES = 3, 128
"""Solved banks and pictures that are kept."""
MOST_SEEDS = 16
MOST_LETTERS = 4_000


@dataclasses.dataclass(frozen=True)
class Question:
    """What the page sends."""

    prompt: str
    strengths: tuple[NotNegative, ...]
    """One per concept of the bank."""
    seeds: tuple[Seed, ...] = (0,)
    steps: Annotated[int, Range(1, 1000)] = 20
    guidance: NotNegative = 4.0

    def check(self) -> None:
        """UserError for more than is drawn at once."""
        if len(self.prompt) > MOST_LETTERS:
            raise UserError(f"prompt has {len(self.prompt)} letters; give at most {MOST_LETTERS}")
        if not 1 <= len(self.seeds) <= MOST_SEEDS:
            raise UserError(f"seeds are {len(self.seeds)}; give 1 to {MOST_SEEDS}")


class Studio:
    """Answers questions about one session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._busy = threading.Lock()
        self._edits: Kept[Edited] = Kept(EDITS)
        self._pictures: Kept[str] = Kept(PICTURES)

    def read(self, asked: Question) -> dict[str, Any]:
        """What the edit does to the prompt, as JSON values. UserError as `reading.read` says."""
        began = time.perf_counter()
        with self._busy:
            edited = self._edited(asked.strengths)
            found = reading.read(self.session, edited, asked.prompt)
        return {
            "tokens": found.tokens,
            "changes": found.changes,
            "touched": [one._asdict() for one in found.touched],
            "active": len(edited.active),
            "seconds": time.perf_counter() - began,
        }

    def draw(self, asked: Question) -> Iterator[dict[str, Any]]:
        """The pictures of both models, seed after seed, each as soon as it is drawn.

        Every one comes with how many there are, and the seconds that the rest will take. UserError,
        before the first, for a prompt that would be cut and for what the solver refuses.
        """
        with self._busy:
            reading.token_texts(self.session.pipeline.encoder, asked.prompt)
            self._edited(asked.strengths)
        wanted = [(name, seed) for seed in asked.seeds for name in ("base", "edited")]
        spent: list[float] = []
        for done, (name, seed) in enumerate(wanted, start=1):
            began = time.perf_counter()
            with self._busy:
                picture = self._picture(asked, name, seed)
            spent.append(time.perf_counter() - began)
            # The first of each model may have waited for a compiler.
            usual = sorted(spent)[len(spent) // 2]
            yield {
                "model": name,
                "seed": seed,
                "picture": picture,
                "done": done,
                "total": len(wanted),
                "left": usual * (len(wanted) - done),
            }

    def _edited(self, strengths: tuple[float, ...]) -> Edited:
        session = self.session
        if session.config.solver != "units":
            return self._edits.get(strengths, lambda: solved(session, strengths))
        all_on = (1.0,) * len(session.concepts.concepts)
        whole = self._edits.get("whole", lambda: solved(session, all_on))
        return self._edits.get(strengths, lambda: scaled(session, whole, strengths))

    def _picture(self, asked: Question, name: str, seed: int) -> str:
        about = (asked.prompt, seed, asked.steps, asked.guidance)
        if name == "base":
            key = about
        else:
            key = (*about, asked.strengths)

        def drawn() -> str:
            base = self.session.pipeline
            pipeline = base if name == "base" else self._edited(asked.strengths).pipeline
            return data_uri(_png(pipeline, asked, seed))

        return self._pictures.get(key, drawn)


def _png(pipeline: Pipeline, asked: Question, seed: int) -> bytes:
    images = generate(
        pipeline, [asked.prompt], [seed], steps=asked.steps, guidance=asked.guidance, batch=1
    )
    return png(images[0])
