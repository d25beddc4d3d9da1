"""The task `bank` by the command: a bank's life; Stage I runs for what is new only."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from safetensors.numpy import load_file, save_file

from emcid_jax import config as settings
from emcid_jax import main
from emcid_jax.editing.bank import memories
from emcid_jax.editing.export import stored_weights
from emcid_jax.editing.export.edit_file import WEIGHT, read_edit
from emcid_jax.tasks import edit
from emcid_jax.tasks.bank import BankConfig
from main_job import written

NAMES = ["dog", "great white shark", "snow", "nurse"]
WORDS = ["a dog", "the snow", "a doctor", "the city", "art"]
# Varied enough that second moments of 64 dimensions are well conditioned.
CAPTIONS = [f"{a} and {b} in a picture of {c}" for a in WORDS for b in WORDS for c in WORDS]
RUN = json.dumps({"config": {"task": "edit"}, "inputs": {}, "environment": {}})
Say = Callable[..., list[str]]


@pytest.fixture
def say(tmp_path: Path, tiny_pipeline_folder: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs an operation on `tmp_path/bank`; gives what it says, or its mistake."""
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    base = BankConfig(
        bank=str(tmp_path / "bank"),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        stage_one=settings.StageOneConfig(layer=2, steps=2, objective="text-only"),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=0.1),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )

    def run(operation: str, *, fails: bool = False, **fields: Any) -> list[str]:
        if "requests" in fields:
            requests = [{"source": n, "dest": "goldfish"} for n in fields.pop("requests")]
            (tmp_path / "requests.json").write_text(json.dumps({"requests": requests}))
            fields["requests"] = settings.RequestsConfig(path=str(tmp_path / "requests.json"))
        asked = dataclasses.replace(base, operation=operation, **fields)
        file = written(asked, tmp_path / "settings.py")
        flags.FLAGS.unparse_flags()
        workdir = tmp_path / "workdir"
        rest = main._parse_flags(["main", f"--config={file}", f"--workdir={workdir}"])
        code = main.main(rest)
        said = capsys.readouterr()
        assert code == (2 if fails else 0), said.err
        return (said.err if fails else said.out).strip().splitlines()

    return run


def test_a_banks_life(say: Say, tmp_path: Path, tiny_pipeline_folder: Path) -> None:
    workdir, bank = tmp_path / "workdir", tmp_path / "bank"
    assert say("add", requests=NAMES[:3])[-1].startswith("ran Stage I for 3 of 3; 3 concepts")
    before = {path: path.stat().st_mtime_ns for path in bank.glob("*.safetensors")}
    assert say("add", requests=NAMES)[-1].startswith("ran Stage I for 1 of 4; 4 concepts")
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["concepts"] for line in log if line["phase"] == "stage_one"] == [3, 1]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())

    listed = say("list")
    assert [line.split("update")[1].strip() for line in listed[1:-1]] == [
        f"{name} -> goldfish" for name in sorted(NAMES)
    ]
    assert listed[-1] == "4 concepts, 4 of strength > 0"
    (shown,) = json.loads("\n".join(say("show", names=("dog",))))
    assert shown["request"]["source"] == "dog"
    assert shown["provenance"]["stage_one"]["steps"] == 2
    assert shown["code"] == metadata.version("emcid_jax")

    say("solve")
    whole, _ = read_edit(workdir / "edit.safetensors")
    base = load_file(tiny_pipeline_folder / "text_encoder" / "model.safetensors")
    edited = load_file(workdir / "text_encoder" / "model.safetensors")
    for layer, delta in whole.deltas().items():
        name = WEIGHT.format(layer)
        before_it = base[name if name in base else name.removeprefix("text_model.")]
        np.testing.assert_allclose(edited[name], before_it + delta, atol=1e-6)
        assert np.abs(delta).max() > 1e-3

    said = say("conflicts", keep=("cat", "Dog"))
    assert said[0] == "'Dog' is edited and to be kept"
    found = json.loads((workdir / "conflicts.json").read_text())
    assert {entry["name"] for entry in found["kept"]} == {"cat", "Dog"}
    assert found["unmet"].keys() == set(NAMES)
    same = next(entry for entry in found["kept"] if entry["name"] == "Dog")
    assert same["nearest"] == "dog"
    assert same["similarity"] == pytest.approx(1)
    assert "&#39;Dog&#39; is edited and to be kept" in (workdir / "conflicts.html").read_text()

    say("strength", query="*shark*", strength=0.0)
    say("solve")
    without, ledger = read_edit(workdir / "edit.safetensors")
    assert {request["source"] for request in ledger["requests"]} == {*NAMES} - {NAMES[1]}
    say("remove", names=(NAMES[1],))
    assert say("solve")[-1].startswith("wrote 3 concepts")
    removed, _ = read_edit(workdir / "edit.safetensors")
    for name, array in without.arrays.items():
        np.testing.assert_array_equal(removed.arrays[name], array)
        assert name not in whole.arrays or not np.array_equal(whole.arrays[name], array)
    # Captions were run through the encoder once: nothing they depend on changed.
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["phase"] == "moments" for line in log) == 1
    assert say("add", requests=NAMES)[-1].startswith("ran Stage I for 0 of 4; 4 concepts")


def test_the_main_jobs_bank_solved_again_gives_the_same_bits(
    say: Say, tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    requests = [{"source": n, "dest": "goldfish", "seed": i} for i, n in enumerate(NAMES)]
    (tmp_path / "all.json").write_text(json.dumps({"requests": requests}))
    config = settings.EditConfig(
        requests=settings.RequestsConfig(path=str(tmp_path / "all.json")),
        model=settings.ModelConfig(path=str(tiny_pipeline_folder)),
        stage_one=settings.StageOneConfig(layer=2, steps=2, objective="text-only"),
        moments=settings.MomentConfig(captions=str(tmp_path / "captions.txt"), batch=8),
        stage_two=settings.StageTwoConfig(layers=(1, 2), preservation_weight=0.1),
        evaluation=settings.EvaluationConfig(enabled=False),
        run=settings.RunConfig(compile_cache=False, progress=False),
    )
    edit.run(config, tmp_path / "main")
    say("solve", bank=str(tmp_path / "main" / "bank"))
    wanted, _ = read_edit(tmp_path / "main" / "edit.safetensors")
    found, _ = read_edit(tmp_path / "workdir" / "edit.safetensors")
    assert found.arrays.keys() == wanted.arrays.keys()
    for name, array in wanted.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


def test_a_derived_model_gets_the_edit_or_a_solve_of_its_own(
    say: Say, tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    say("add", requests=NAMES[:2])
    say("solve")
    edit_path = tmp_path / "edit.safetensors"
    (tmp_path / "workdir" / "edit.safetensors").rename(edit_path)
    base = settings.ModelConfig(path=str(tiny_pipeline_folder))
    for block, how in ((3, "applied (blocks [3] differ)"), (1, "solved (blocks [1] differ)")):
        folder = Path(shutil.copytree(tiny_pipeline_folder, tmp_path / f"derived-{block}"))
        file = folder / "text_encoder" / "model.safetensors"
        arrays = load_file(file)
        (name,) = (n for n in arrays if n.endswith(f"layers.{block}.mlp.fc1.weight"))
        arrays[name] = 1.1 * arrays[name]
        save_file(arrays, file, metadata={"format": "pt"})
        derived = settings.ModelConfig(path=str(folder))
        (line,) = say("port", model=derived, base=base, edit=str(edit_path))
        assert line.startswith(how)
        found = json.loads((tmp_path / "workdir" / "port.json").read_text())
        assert found["difference"]["blocks"] == [block]
        assert {one["source"] for one in found["reached"]} == set(NAMES[:2])
        content, ledger = read_edit(tmp_path / "workdir" / "edit.safetensors")
        assert ledger["base"]["text_encoder"] == stored_weights.weights_hash(arrays)
        edited = load_file(tmp_path / "workdir" / "text_encoder" / "model.safetensors")
        assert ledger["edited"] == stored_weights.weights_hash(edited)
        same = [
            np.array_equal(content.arrays[key], array)
            for key, array in read_edit(edit_path)[0].arrays.items()
        ]
        assert all(same) if block == 3 else not any(same)


def test_mistakes_are_named(say: Say, tmp_path: Path) -> None:
    say("add", requests=NAMES[:2])
    for operation, fields, words in (
        ("list", {"bank": ""}, "config.bank is empty"),
        ("list", {"bank": str(tmp_path / "no")}, "no is no concept bank"),
        ("merge", {}, "config.other is empty"),
        ("remove", {}, "say which concepts operation remove is for"),
        ("remove", {"names": ("dgo",)}, "'dgo' is not in the bank; did you mean 'dog'?"),
        ("remove", {"query": "x*"}, "match no concept"),
        ("solve", {"bank": str(tmp_path / "no")}, "no is no concept bank"),
    ):
        (line,) = say(operation, fails=True, **fields)
        assert words in line
    (record, _) = sorted((tmp_path / "bank").glob("*.safetensors"))
    content = record.read_bytes()
    record.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (line,) = say("list", fails=True)
    assert record.name in line


def test_solve_leaves_another_tasks_workdir_alone(say: Say, tmp_path: Path) -> None:
    (tmp_path / "workdir").mkdir()
    (tmp_path / "workdir" / "config.json").write_text(RUN)
    (line,) = say("solve", fails=True)
    assert "another task's results" in line


@pytest.mark.parametrize("files", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_killed_add_given_again_leaves_the_same_bank(
    files: int, say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memories are found in chunks of two; `files` of four are there when the process dies."""
    bank, calm = tmp_path / "bank", tmp_path / "calm"
    run = settings.RunConfig(compile_cache=False, progress=False, save_every=2)
    say("add", requests=NAMES, run=run)
    bank.rename(calm)
    write, left = memories.write, files

    def dying(*arguments: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(memories, "write", dying)
        with pytest.raises(AssertionError, match="goes on from here"):
            say("add", requests=NAMES, run=run)
    assert len(list(bank.glob("*.safetensors"))) == files
    assert say("add", requests=NAMES, run=run)[-1].startswith(f"ran Stage I for {4 - files} of 4")
    found, wanted = ({p.name: p.read_bytes() for p in f.iterdir()} for f in (bank, calm))
    assert found == wanted
