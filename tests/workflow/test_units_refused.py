"""Tasks that tell nothing of units refuse them while the settings are read."""

from __future__ import annotations

import pytest

from emcid_jax.config import EditConfig, StageTwoConfig
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks.bank import BankConfig
from emcid_jax.tasks.implicit import ImplicitConfig
from emcid_jax.tasks.sequential import SequentialConfig
from emcid_jax.tasks.text_report import TextReportConfig

UNITS = StageTwoConfig(layers=(0,), solver="units")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (BankConfig(bank="runs/mine/bank", operation="conflicts", stage_two=UNITS), "stage_two"),
        (TextReportConfig(bank="runs/mine/bank", stage_two=UNITS), "stage_two"),
        (ImplicitConfig(EditConfig(stage_two=UNITS)), "base.stage_two"),
        (SequentialConfig(EditConfig(stage_two=UNITS)), "base.stage_two"),
    ],
)
def test_units_are_refused_by_what_tells_nothing_of_them(config, field):
    with pytest.raises(UserError, match=rf"config\.{field}\.solver is 'units'.* give 'ridge'"):
        config.check()


def test_a_bank_is_solved_by_them():
    BankConfig(bank="runs/mine/bank", operation="solve", stage_two=UNITS).check()
