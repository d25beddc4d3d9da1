"""Old names of settings: refused wherever a user writes them, understood in older files."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from emcid_jax import config as settings
from emcid_jax.config import renamed
from emcid_jax.editing.export.edit_file import read_ledger
from emcid_jax.main import TASKS
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks import edit_file
from emcid_jax.tasks.ablate import AblateConfig
from emcid_jax.tasks.evaluate import EvaluateConfig
from emcid_jax.tasks.layer_ranges import LayerRangesConfig
from emcid_jax.tasks.sample import SampleConfig

REQUESTS = settings.RequestsConfig(path="requests.json")
BASE = settings.EditConfig(requests=REQUESTS)
STORED = Path(__file__).parents[1] / "data" / "version_0_1" / "edit.safetensors"


@pytest.mark.parametrize(
    ("config", "field", "new"),
    [
        (BASE, "stage_two.moment_weight", "preservation_weight"),
        (BASE, "stage_two.preserve_weight", "protected_weight"),
        (BASE, "stage_two.solve", "solve_on"),
        (AblateConfig(BASE), "base.stage_two.solve", "solve_on"),
        (EvaluateConfig(BASE), "uce.moment_weight", "preservation_weight"),
        (EvaluateConfig(BASE), "uce.preserve_weight", "protected_weight"),
        (EvaluateConfig(BASE), "most", "max_requests"),
        (EvaluateConfig(BASE), "judged", "max_judged"),
        (LayerRangesConfig(BASE, keep=("snow",)), "lasts", "last_layers"),
    ],
)
def test_an_old_name_in_a_config_is_refused_with_the_new_one(
    config: Any, field: str, new: str
) -> None:
    values: Any = dataclasses.asdict(config)
    assert settings.from_config_dict(values, type(config)) == config
    *sections, name = field.split(".")
    part = values
    for section in sections:
        part = part[section]
    part[name] = part.pop(new)
    message = f"config.{field} is now called {'.'.join(['config', *sections, new])}"
    with pytest.raises(UserError, match=rf"^{message}$".replace(".", r"\.")):
        settings.from_config_dict(values, type(config))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a: stage_two.moment_weight=3.", "stage_two.moment_weight' is now called 'stage_two.pres"),
        ("a: stage_two.solve=device", "stage_two.solve' is now called 'stage_two.solve_on'"),
        ("a: method=uce uce.preserve_weight=3.", "uce.preserve_weight' is now called 'uce.protec"),
        ("a: most=3", "'most' is now called 'max_requests'"),
    ],
)
def test_an_old_name_in_a_row_is_refused_with_the_new_one(row: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^config\.rows: .*{message}"):
        EvaluateConfig(BASE, rows=(row,)).check()
    row = row.removeprefix("a: ")
    if row.startswith("stage_two"):
        with pytest.raises(UserError, match=rf"^config\.variants: .*{message}"):
            AblateConfig(BASE, variants=(row,)).check()


def test_every_new_name_is_a_setting() -> None:
    fields = {"stage_two": settings.StageTwoConfig(), "uce": EvaluateConfig().uce}
    tasks = (EvaluateConfig(), LayerRangesConfig(), SampleConfig())
    for old, new in renamed.SETTINGS.items():
        section, _, name = old.partition(".")
        for config in (fields[section],) if section in fields else tasks:
            assert not hasattr(config, name)
        *sections, last = new.split(".")
        assert any(
            hasattr(functools.reduce(lambda at, name: getattr(at, name, None), sections, one), last)
            for one in (*fields.values(), *tasks)
        )
    assert set(renamed.TASKS.values()) <= set(TASKS)
    assert not set(renamed.TASKS) & set(TASKS)


def test_names_are_those_of_their_section_alone() -> None:
    assert renamed.new_name("config.base.stage_two.solve") == "config.base.stage_two.solve_on"
    for field in ("config.stage_one.solve", "config.stage_two.most", "config.solve", "solve"):
        assert renamed.new_name(field) is None


def test_an_edit_file_of_version_0_1_is_shown_with_todays_names() -> None:
    layers, ledger = read_ledger(STORED)
    assert {"moment_weight", "solve"} <= ledger["stage_two"].keys()
    (line,) = (line for line in edit_file.summary(layers, ledger, 1) if "stage_two" in line)
    assert f'"preservation_weight": {ledger["stage_two"]["moment_weight"]}' in line
    assert '"solve_on": "host"' in line
    assert "moment_weight" not in line


def test_older_undoes_current() -> None:
    new = {
        "base": {"stage_two": {"preservation_weight": 1.0, "solve_on": "host", "layers": [1]}},
        "uce": {"protected_weight": 2.0, "preserve": ["solve", "most"]},
        "max_requests": 3,
        "rows": ["a: stage_two.solve_on=device uce.preservation_weight=3. b=solve"],
    }
    old = {
        "base": {"stage_two": {"moment_weight": 1.0, "solve": "host", "layers": [1]}},
        "uce": {"preserve_weight": 2.0, "preserve": ["solve", "most"]},
        "most": 3,
        "rows": ["a: stage_two.solve=device uce.moment_weight=3. b=solve"],
    }
    assert renamed.older(new) == old
    assert renamed.current(old) == new
    assert renamed.current(new) == new
