"""What a run's folder must hold, and what the switches do to the edit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from emcid_jax.config import ModelConfig, MomentConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.memories import model_hashes
from emcid_jax.editing.encoder.hidden_units import make_units
from emcid_jax.editing.stage_two.gate_report import GateReport, UnitsReport
from emcid_jax.editing.stage_two.solve import StageTwoReport, WeightEdit
from emcid_jax.explore.session import Edited, Session, open_session, scaled, solved
from emcid_jax.runtime.errors import UserError
from emcid_jax.tasks.bank import BankConfig
from emcid_jax.workflow import workdir as folders
from emcid_jax.workflow.find_moments import find_captions, moments_folder


def test_a_switched_off_concept_is_one_that_the_bank_lost(
    session: Session, places: dict[str, int], run_folder: Path, tmp_path: Path
) -> None:
    strengths = [1.0, 1.0, 1.0]
    strengths[places["dog"]], strengths[places["a female doctor"]] = 0.0, 0.5
    found = solved(session, strengths).edit["text_encoder"]
    bank = tmp_path / "bank"
    shutil.copytree(run_folder / "bank", bank)
    listed = concept_bank.read_list(bank)
    concept_bank.remove(bank, [listed[places["dog"]]])
    concept_bank.set_strength(bank, [listed[places["a female doctor"]]], 0.5)
    wanted = bank_solve.solve(
        concept_bank.open_bank(bank), session.pipeline, session.moments, session.config
    )["text_encoder"]
    assert found.deltas.keys() == {1, 2}
    for layer, delta in found.deltas.items():
        np.testing.assert_array_equal(delta, wanted.deltas[layer])


def test_a_solved_bank_is_read_with_the_moments_of_its_captions(
    session: Session, run_folder: Path, tmp_path: Path
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a dog\nthe snow\n")
    config = BankConfig(
        bank=str(run_folder / "bank"),
        model=ModelConfig(path=session.model),
        moments=MomentConfig(captions=str(captions)),
        stage_two=session.config,
    )
    layers = {"text_encoder": session.config.layers}
    found = find_captions(config.moments)
    place = moments_folder(tmp_path, model_hashes(session.pipeline), found, layers)
    shutil.copytree(run_folder / "moments", place)
    folders.write_config(tmp_path, config, {}, {})
    again, before = (
        solved(one, [1.0, 0.5, 0.0]).edit["text_encoder"].deltas
        for one in (open_session(tmp_path), session)
    )
    for layer, delta in before.items():
        np.testing.assert_array_equal(again[layer], delta)
    captions.write_text("another text\n")
    with pytest.raises(UserError, match=r"second_moments\.safetensors"):
        open_session(tmp_path)


def test_with_all_off_the_model_is_the_base(session: Session) -> None:
    found = solved(session, [0.0, 0.0, 0.0])
    assert found.pipeline is session.pipeline
    assert found.active == ()


def test_units_change_their_answers_alone(session: Session) -> None:
    rng = np.random.default_rng(0)
    # The third name has no unit: it shares the first one's.
    units = make_units(
        2, rng.normal(size=(2, 32)), np.zeros(32), np.full(2, 0.7), rng.normal(size=(2, 32))
    )
    gates = tuple(
        GateReport(name, 0.7, 1.0, 0.9, 0.0, shares=shares)
        for name, shares in (("a", ""), ("b", ""), ("c", "a"))
    )
    report = StageTwoReport((), 1.0, 0.0, UnitsReport(gates, 0.0, 10))
    edit = {"text_encoder": WeightEdit({}, report, units)}
    whole = Edited((0, 1, 2), session.pipeline, edit, {})
    for strengths, factors in (
        ((1.0, 1.0, 1.0), (1.0, 1.0)),
        ((0.5, 0.0, 1.0), (0.5, 0.0)),
        ((0.0, 0.25, 1.0), (1.0, 0.25)),  # The name that shares the unit keeps it open.
        ((0.0, 1.0, 0.0), (0.0, 1.0)),
    ):
        found = scaled(session, whole, strengths)
        own = found.edit["text_encoder"].units
        assert own is not None
        np.testing.assert_array_equal(own.answers, units.answers * np.c_[np.float32(factors)])
        np.testing.assert_array_equal(own.rows, units.rows)
        assert found.active == tuple(i for i, one in enumerate(strengths) if one)
        base, edited = (p.params["text_encoder"] for p in (session.pipeline, found.pipeline))
        shapes = [jax.tree.map(np.shape, one["text_model"]["encoder"]) for one in (base, edited)]
        assert shapes[1]["layers.2"]["mlp"]["fc1"]["bias"] == (64 + 4,)
        assert shapes[0]["layers.2"]["mlp"]["fc1"]["bias"] == (64,)


def test_strengths_are_one_per_concept(session: Session) -> None:
    with pytest.raises(UserError, match="strengths are 2, but the bank has 3 concepts"):
        solved(session, [1.0, 1.0])


def test_the_settings_of_the_run_are_those_of_its_pictures(session: Session) -> None:
    assert (session.steps, session.guidance) == (2, 2.0)


def test_what_is_no_run_is_told_in_a_line(run_folder: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(run_folder, tmp_path / name))

    no_moments, other, empty = broken("moments"), broken("other"), broken("empty")
    (no_moments / "moments" / "second_moments.safetensors").unlink()
    about = json.loads((other / "config.json").read_text())
    about["config"]["task"] = "sample"
    (other / "config.json").write_text(json.dumps(about))
    concept_bank.update(empty / "bank", lambda old: [])
    for folder, words in (
        (tmp_path / "nowhere", "nowhere', which is no folder"),
        (run_folder / "bank", "has no config.json; give the folder that a run was told"),
        (other, "the folder of task 'sample'; give one of task edit or bank"),
        (no_moments, "second_moments.safetensors"),
        (empty, "whose bank is empty"),
    ):
        with pytest.raises(UserError, match=words):
            open_session(folder)
