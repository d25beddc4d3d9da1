"""Overrides as texts: what `changes` says is what `override` does."""

from __future__ import annotations

import dataclasses

from emcid_jax.config import EditConfig, StageOneConfig, StageTwoConfig
from emcid_jax.config.overrides import changes, override


def test_changes_are_overrides_that_lead_from_one_setting_to_the_other() -> None:
    before = EditConfig(stage_one=StageOneConfig(steps=60))
    after = dataclasses.replace(
        before,
        stage_one=StageOneConfig(layer=1, learning_rate=1e-5, pooled_text_loss=False),
        stage_two=StageTwoConfig(layers=(0, 1), second_layers=(3,), solver="units"),
    )
    text = changes(before, after)
    assert text == (
        "stage_one.layer=1 stage_one.steps=100 stage_one.learning_rate=1e-05 "
        "stage_one.pooled_text_loss=False stage_two.layers=(0,1) stage_two.second_layers=(3,) "
        "stage_two.solver=units"
    )
    values = dataclasses.asdict(before)
    override(values, text, ("stage_one", "stage_two"), "rows")
    assert values == dataclasses.asdict(after)
    assert changes(before, before) == ""
