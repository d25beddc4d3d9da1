"""Two gates that must agree, against loops over tokens and names."""

from __future__ import annotations

import numpy as np

from emcid_jax.editing.stage_two.gate_report import UnitsReport
from emcid_jax.editing.units.fit import FittedGates
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from studies.gates import Gates, opened_by, text_tokens, wrongly_open

NAMES = ["dog", "red boat"]
TEXTS = ["a photo of a dog", "red boat", "a dog in a red boat", "the boat"]


def gates_of(pipeline: Pipeline, block: int, rng: np.random.Generator) -> Gates:
    """A gate for each name that the median token of the texts just passes."""
    states = text_tokens(pipeline, TEXTS, block).states
    directions = rng.normal(size=(len(NAMES), states.shape[1]))
    thresholds = np.median((states - states.mean(axis=0)) @ directions.T, axis=0) - 1e-6
    fitted = FittedGates(directions, thresholds, np.ones(2), UnitsReport((), 0.0, 1))
    return Gates(NAMES, fitted, states.mean(axis=0), block)


def test_a_concept_answers_where_both_gates_open_and_wrongly_but_at_its_own_end(
    tiny_pipeline_folder,
) -> None:
    pipeline = load_pipeline(tiny_pipeline_folder)
    rng = np.random.default_rng(3)
    for blocks in ((0,), (0, 1)):
        fits = [gates_of(pipeline, block, rng) for block in blocks]
        texts, tokens, total, every = set(), 0, 0, {}
        for number, text in enumerate(TEXTS):
            parts = [text_tokens(pipeline, [text], gates.block) for gates in fits]
            ids = parts[0].recent[:, -1].tolist()
            for place in range(len(ids)):
                said = []
                for name in range(len(NAMES)):
                    opened = all(
                        (part.states[place] - gates.mean) @ gates.fitted.directions[name]
                        > gates.fitted.thresholds[name]
                        for part, gates in zip(parts, fits, strict=True)
                    )
                    own = pipeline.encoder.tokenizer(NAMES[name], add_special_tokens=False)
                    ends = ids[: place + 1][-len(own["input_ids"]) :] == own["input_ids"]
                    if opened:
                        every.setdefault(text, set()).add(NAMES[name])
                        said.append(not ends)
                tokens += any(said)
                texts |= {number} if any(said) else set()
                total += 1
        assert 0 < tokens < total
        (found,) = wrongly_open(pipeline, [fits], TEXTS)
        assert (set(found.texts.tolist()), len(found.texts)) == (texts, tokens)
        assert found.tokens == total
        for text in TEXTS:
            names = {name for name, _ in opened_by(pipeline, fits, text)}
            assert names == every.get(text, set())
