"""Presets of Stage I: by name, in config files too, and each another objective."""

from __future__ import annotations

import dataclasses
import importlib

import pytest

from emcid_jax.config import StageOneConfig, bundled, preset
from emcid_jax.config.presets import PRESETS
from emcid_jax.runtime.errors import UserError
from emcid_jax.sprites.bundled import STAGE_ONE


def test_published_is_the_default_and_balanced_what_the_sprites_take() -> None:
    assert preset("published", StageOneConfig()) == StageOneConfig()
    balanced = preset("balanced", STAGE_ONE)
    found = balanced.objective, balanced.learning_rate, balanced.text_loss_scale, balanced.steps
    assert found == ("attention", 1.0, 1.0, 100)


def test_text_first_is_the_published_loss_with_a_tenth_of_its_steps() -> None:
    found, published = preset("text_first", STAGE_ONE), preset("published", STAGE_ONE)
    assert (found.text_steps, 10 * found.steps) == (60, published.steps)
    assert dataclasses.replace(found, text_steps=0, steps=published.steps) == published


def test_a_preset_that_is_none_is_named_with_those_that_are() -> None:
    with pytest.raises(
        UserError, match="preset is 'slow'; allowed: published, text_first, balanced, fast"
    ):
        preset("slow", StageOneConfig())


@pytest.mark.parametrize("name", ["own_model", "aice", "quickstart", "plan"])
def test_configs_take_a_preset_behind_their_name(name: str) -> None:
    assert bundled.find(f"{name}:fast") == f"{bundled.folder() / name}.py:fast"
    assert bundled.find(f"configs/{name}.py:fast") == f"configs/{name}.py:fast"
    get_config = importlib.import_module(f"configs.{name}").get_config
    objectives = [get_config(*chosen).stage_one.objective for chosen in ((), *zip(PRESETS))]
    assert objectives == ["ablate-dest", "ablate-dest", "ablate-dest", "attention", "text-only"]
    with pytest.raises(UserError, match="preset is 'slow'"):
        get_config("slow")
