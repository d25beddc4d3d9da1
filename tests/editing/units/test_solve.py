"""Concepts as units: what they change, what they leave, in company, in files and in other tools."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.encoder.hidden_units import HEIGHT, WIDTH
from emcid_jax.editing.export import edit_file, into_folder, lora, stored_weights, text_encoder
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.units.states import fc1_inputs
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import tokenize
from emcid_jax.runtime.errors import UserError
from emcid_jax.workflow.open_model import read_text_params

BLOCK = 0
WIDTHS = 192, 1536
CONFIG = StageTwoConfig(layers=(BLOCK,), solver="units", unit_contexts=6)
TEMPLATES = ("a photo of {}", "{}")
SENTENCES = ["the old {} in the snow", "an image of a small {} and a photo"]


def written(bank, pipeline, measured, config):
    """The edit of the only text encoder."""
    return bank_solve.solve(bank, pipeline, {"text_encoder": measured}, config)["text_encoder"]


@pytest.fixture(scope="module")
def solved(pipeline, measured, bank):
    return written(bank, pipeline, measured, CONFIG)


@pytest.fixture(scope="module")
def edited(pipeline, solved):
    return stage_two.with_edit(pipeline, {"text_encoder": solved})


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, ids):
    out = model.apply({"params": params}, ids)
    return out.hidden[BLOCK], out.last_hidden_state


def states(pipeline, prompts):
    """Output of the block, and final states."""
    ids = tokenize(pipeline.encoder.tokenizer, prompts)
    found = run(pipeline.encoder.model, pipeline.params["text_encoder"], ids)
    return tuple(np.array(part) for part in found)


def test_a_unit_adds_its_offset_at_its_name_and_nothing_elsewhere(pipeline, edited, bank):
    cases = [(c, sentence) for c in bank.concepts for sentence in [*TEMPLATES, *SENTENCES]]
    prompts = [sentence.replace("{}", concept.request.source) for concept, sentence in cases]
    changes = states(edited, prompts)[0] - states(pipeline, prompts)[0]
    for (concept, sentence), change in zip(cases, changes, strict=True):
        delta = bank.records[concept.memory].memory.delta
        until = sentence.split("{}")[0] + concept.request.source
        place = len(pipeline.encoder.tokenizer([until])["input_ids"][0]) - 2
        np.testing.assert_allclose(change[place], delta, atol=0.02 * np.abs(delta).max())
        change[place] = 0
        # Behind the name attention has not mixed yet: the offset enters at this block's end.
        np.testing.assert_allclose(change, 0, atol=1e-5)


def test_prompts_without_the_names_are_the_base_to_rounding(pipeline, edited):
    prompts = ["a photo of a violin", "the old tench in the snow", "", "red blue small"]
    for new, old in zip(states(edited, prompts), states(pipeline, prompts), strict=True):
        np.testing.assert_allclose(new, old, rtol=2e-5, atol=2e-5)


def test_a_name_that_ends_in_a_piece_is_not_any_word_that_ends_so(pipeline, measured, random_bank):
    asked = [EditRequest("grunter", "tench", TEMPLATES)]
    start = np.zeros((1, WIDTHS[0]))
    one = random_bank(asked, start, memories.model_hashes(pipeline), BLOCK)
    alone = stage_two.with_edit(
        pipeline, {"text_encoder": written(one, pipeline, measured, CONFIG)}
    )
    words = ("grunter", "character", "porter", "counter", "chapter", "shorter")
    sentences = [*TEMPLATES, *SENTENCES]
    prompts = [sentence.replace("{}", word) for word in words for sentence in sentences]
    changes = np.abs(states(alone, prompts)[0] - states(pipeline, prompts)[0]).max(axis=(1, 2))
    for word, change in zip(words, changes.reshape(-1, len(sentences)), strict=True):
        assert pipeline.encoder.tokenizer.tokenize(word)[-1] == "ter</w>"
        assert (change > 1).all() if word == "grunter" else (change < 1e-5).all(), word


def test_a_concept_comes_and_goes_without_touching_the_others(pipeline, measured, bank, solved):
    for left_out in range(len(bank.concepts)):
        kept = [i for i in range(len(bank.concepts)) if i != left_out]
        fewer = dataclasses.replace(bank, concepts=tuple(bank.concepts[i] for i in kept))
        again = written(fewer, pipeline, measured, CONFIG)
        gone = bank.concepts[left_out].request.source
        gates = solved.report.units.gates
        for place, i in enumerate(kept):
            # Those that the report lists as mistaken for it are held against it.
            if gone not in [other.name for other in gates[i].mistaken]:
                for part in ("rows", "biases", "answers"):
                    new, old = (getattr(one.units, part) for one in (again, solved))
                    np.testing.assert_array_equal(new[place], old[i])


def test_strength_scales_the_answer_alone(pipeline, measured, bank, solved):
    weaker = [dataclasses.replace(bank.concepts[0], strength=0.5), *bank.concepts[1:]]
    again = written(dataclasses.replace(bank, concepts=tuple(weaker)), pipeline, measured, CONFIG)
    np.testing.assert_array_equal(again.units.rows, solved.units.rows)
    np.testing.assert_array_equal(again.units.biases, solved.units.biases)
    np.testing.assert_allclose(again.units.answers[0], 0.5 * solved.units.answers[0], rtol=1e-6)
    np.testing.assert_array_equal(again.units.answers[1:], solved.units.answers[1:])


def test_names_to_keep_do_not_open_a_gate(pipeline, measured, bank):
    kept = dataclasses.replace(CONFIG, preserve=("old acoustic guitar",))
    found = written(bank, pipeline, measured, kept)
    gates = {gate.source: gate for gate in found.report.units.gates}
    told = [
        other for other in gates["acoustic guitar"].mistaken if other.name == "old acoustic guitar"
    ]
    assert [other.relation for other in told] == ["kept"]


def test_a_longer_name_that_goes_on_behind_another_is_told(pipeline, measured, bank, caplog):
    longer = "small acoustic guitar case"
    kept = dataclasses.replace(CONFIG, preserve=(longer, "old acoustic guitar"))
    found = written(bank, pipeline, measured, kept)
    gates = {gate.source: gate.inside for gate in found.report.units.gates}
    assert gates["acoustic guitar"] == (longer,)  # The other one ends with it, and wins.
    assert f"'acoustic guitar' in {longer!r}" in caplog.text
    # It is so: the unit answers there.
    edited = stage_two.with_edit(pipeline, {"text_encoder": found})
    (base, _), (now, _) = (states(one, [f"a photo of a {longer}"]) for one in (pipeline, edited))
    assert np.abs(now - base).max() > 0.1


def test_what_captions_say_is_counted(pipeline, measured, solved):
    """Rows of the reference, as text, that end with the name or its plural."""
    tokenizer, found = pipeline.encoder.tokenizer, {}
    rows = [[token for token in row if token] for row in measured.recent.tolist()]
    texts = [text.replace("<|startoftext|>", "") for text in tokenizer.batch_decode(rows)]
    said = [f" {text.strip()}" for text in texts]
    for gate in solved.report.units.gates:
        ends = (f" {gate.source}", f" {gate.source}s")
        found[gate.source] = np.mean([text.endswith(ends) for text in said])
        assert gate.spoken == pytest.approx(found[gate.source]), gate.source
    assert max(found.values()) > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_flips_no_gate(pipeline, edited, solved, bank, dtype):
    """Stored in half precision, every gate is open or shut as in float32.

    bfloat16 is computed with, too; JAX has no float16 products on CPUs.
    """
    names = [c.request.source for c in bank.concepts] + ["violin", "tench", "snow", "photo"]
    prompts = [s.replace("{}", name) for s in [*TEMPLATES, *SENTENCES] for name in names]
    ids = tokenize(pipeline.encoder.tokenizer, prompts)
    params = edited.params["text_encoder"]
    opened = []
    for kind in (jnp.float32, jnp.dtype(dtype)):
        model = edited.encoder.model.clone(dtype=jnp.float32 if kind == jnp.float16 else kind)
        stored = jax.tree.map(lambda leaf, kind=kind: leaf.astype(kind), params)
        keys = jax.jit(model.apply)({"params": stored}, ids).keys[BLOCK]
        units = np.asarray(keys, np.float32)[..., -solved.units.width :]
        opened.append((units[..., ::2] - units[..., 1::2]) / HEIGHT)
    full, half = opened
    sure = np.abs(full - 0.5) > 0.45  # All but those on the ramp itself.
    assert sure.mean() > 0.99
    assert (full > 0.5).any()
    np.testing.assert_array_equal((half > 0.5)[sure], (full > 0.5)[sure])


def test_the_edit_file_carries_the_units_and_a_line_for_each(
    pipeline, measured, bank, solved, edited, tmp_path
):
    content = edit_file.pack(solved.deltas, solved.units)
    hashes = memories.model_hashes(pipeline)
    after = params_hash(edited.params["text_encoder"])
    ledger = edit_file.make_ledger(
        bank,
        hashes,
        {"text_encoder": measured},
        CONFIG,
        {"text_encoder": solved.report},
        {"text_encoder": after},
    )
    path = tmp_path / "edit.safetensors"
    edit_file.write_edit(path, content, ledger)
    again, read = edit_file.read_edit(path)
    for part in ("rows", "biases", "answers"):
        np.testing.assert_array_equal(getattr(again.units(), part), getattr(solved.units, part))
    assert edit_file.read_report(read) == solved.report
    assert [gate["source"] for gate in read["report"]["units"]["gates"]] == [
        request["source"] for request in read["requests"]
    ]
    # Files written before these fields were there.
    old = json.loads(json.dumps(read))
    del old["report"]["units"]["separability"]
    for gate in old["report"]["units"]["gates"]:
        del gate["spoken"]
    told = edit_file.read_report(old).units
    assert [gate.recall for gate in told.gates] == [
        gate.recall for gate in solved.report.units.gates
    ]
    for refuse in (
        lambda: lora.write_lora(tmp_path / "lora.safetensors", again, {}, 4),
        lambda: edit_file.require_own_width(again, "that tool"),
    ):
        with pytest.raises(UserError, match=r"adds 6 hidden units"):
            refuse()
    assert not (tmp_path / "lora.safetensors").exists()


def test_transformers_loads_the_wider_encoder(pipeline, edited, tmp_path):
    import torch
    from transformers import CLIPTextModel

    folder = tmp_path / "text_encoder"
    params = edited.params["text_encoder"]
    text_encoder.write_text_encoder(folder, params, pipeline.folder / "text_encoder", "float32")
    model = CLIPTextModel.from_pretrained(folder).eval()
    assert model.config.intermediate_size == WIDTHS[1] + 6
    prompts = ["the old goldfish in the snow", "a photo of a cat"]
    with torch.no_grad():
        wanted = model(torch.as_tensor(tokenize(pipeline.encoder.tokenizer, prompts)))
    found = states(edited, prompts)[1]
    np.testing.assert_allclose(found, wanted.last_hidden_state.numpy(), rtol=1e-4, atol=1e-4)
    again = read_text_params(pipeline, folder)
    assert params_hash(again) == params_hash(params)


def test_apply_and_undo_leave_the_very_bytes(pipeline, measured, bank, solved, edited, tmp_path):
    from transformers import CLIPTextModel

    folder = tmp_path / "model"
    shutil.copytree(pipeline.folder / "text_encoder", folder / "text_encoder")
    before = {path.name: path.read_bytes() for path in (folder / "text_encoder").iterdir()}
    content = edit_file.pack(solved.deltas, solved.units)
    ledger = {
        "base": {"text_encoder": params_hash(pipeline.params["text_encoder"])},
        "edited": params_hash(edited.params["text_encoder"]),
        "requests": [],
    }
    into_folder.apply(folder, content, ledger)
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    rounded = jax.tree.map(  # The bundled model is stored in float16.
        lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), edited.params["text_encoder"]
    )
    assert stored_weights.weights_hash(weights) == params_hash(rounded)
    assert (
        CLIPTextModel.from_pretrained(folder / "text_encoder").config.intermediate_size
        == WIDTHS[1] + 6
    )
    said = json.loads((folder / "text_encoder" / "edit.json").read_text())
    assert json.loads(said["config"])["intermediate_size"] == WIDTHS[1]
    with pytest.raises(UserError, match="edited already"):
        into_folder.apply(folder, content, ledger)
    into_folder.undo(folder)
    after = {path.name: path.read_bytes() for path in (folder / "text_encoder").iterdir()}
    assert after == before


@pytest.mark.parametrize(
    ("change", "message"),
    [({"layers": (1,)}, "stand in one block"), ({"solver": "ridge"}, "is for another one")],
)
def test_settings_that_do_not_fit_are_refused(pipeline, measured, bank, change, message):
    with pytest.raises(UserError, match=message):
        written(bank, pipeline, measured, dataclasses.replace(CONFIG, **change))


def test_the_report_tells_what_the_gates_do(solved):
    gates = solved.report.units.gates
    assert all(gate.recall > 0.8 and gate.threshold > WIDTH for gate in gates)
    assert solved.report.units.false_firing < 0.01
    assert solved.report.distance_after < 0.1 * solved.report.distance_before


def test_strict_gates_open_later_and_not_at_other_names_that_end_alike(pipeline, measured, bank):
    """Of "acoustic guitar", at ten names that no gate was fitted to."""
    words = ["blue", "toy", "old", "steel", "wooden", "tiny", "bass", "jazz", "paper", "small"]
    prompts = [f"a photo of a {word} guitar" for word in words]
    prompts.append("a painting of an acoustic guitar")
    ids = tokenize(pipeline.encoder.tokenizer, prompts)
    states = np.asarray(
        fc1_inputs(pipeline.encoder.model, pipeline.encoder.params, jnp.asarray(ids), BLOCK)
    )
    last = np.argmax(np.asarray(ids) == pipeline.encoder.tokenizer.eos_token_id, axis=1) - 1
    reads = []
    for change in ({}, {"gate_threshold": 0.75, "all_strangers": True}):
        config = dataclasses.replace(CONFIG, **change)
        found = written(bank, pipeline, measured, config)
        gate = [one.source for one in found.report.units.gates].index("acoustic guitar")
        own = states[np.arange(len(prompts)), last]
        reads.append(own @ found.units.rows[gate] + found.units.biases[gate, 0])
        assert found.report.units.gates[gate].threshold > config.gate_threshold - 1e-6
    (*loose, named), (*strict, named_strictly) = reads
    assert named > 4  # The ramp's end: fully open.
    assert named_strictly > 4
    assert max(strict) < 0  # Its beginning: shut.
    assert np.mean(strict) < np.mean(loose)
