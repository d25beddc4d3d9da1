"""Measures in text space against the plain encoder, and the page as Chromium shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageOneConfig, StageTwoConfig
from emcid_jax.editing.bank import concepts as concept_bank
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank import solve as bank_solve
from emcid_jax.editing.bank.memories import Memory, Record
from emcid_jax.editing.diagnostics import predicted_conflicts
from emcid_jax.editing.diagnostics.predicted_conflicts import KeyMap
from emcid_jax.editing.moments.second_moment import MomentProvenance, SecondMoments
from emcid_jax.editing.stage_two.solve import WeightEdit, apply_edit
from emcid_jax.evaluation.text_space import measure as text_space
from emcid_jax.evaluation.text_space.measure import TextSpace
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.reporting.pages.text_space import write_text_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CONFIG = StageTwoConfig(layers=(2,), preservation_weight=5.0)
TEMPLATES = ("A photo of {}", "{}")
EVIL = "<b>dog"
NAMES = (EVIL, "a female doctor", "snow")
KEEP = ("cat", "beach", "SNOW", "a male doctor")
CAPTIONS = ["a photo of the snow", "a snowy city", "the art of Salvador Dali", "a shark"]


@pytest.fixture(scope="module")
def pipeline(tiny_pipeline_folder: Path) -> Pipeline:
    return load_pipeline(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def measured(pipeline: Pipeline) -> tuple[TextSpace, WeightEdit]:
    requests = [EditRequest(name, "goldfish", TEMPLATES) for name in NAMES]
    model, rng = memories.model_hashes(pipeline), np.random.default_rng(0)
    prompts = spans.source_prompts(pipeline.encoder.tokenizer, requests)
    out = pipeline.encoder.model.apply(
        {"params": pipeline.params["text_encoder"]}, jnp.asarray(prompts.ids[:, 0])
    )
    start = np.asarray(out.hidden[2])[np.arange(3), prompts.positions[:, 0]]
    none = np.zeros(4, np.float32)
    records = [
        Record(
            memories.provenance(request, StageOneConfig(layer=2), model),
            Memory(h + delta, delta, none, none, none),
            {},
        )
        for request, h in zip(requests, start, strict=True)
        for delta in [rng.standard_normal(32).astype(np.float32)]
    ]
    concepts = concept_bank.of_requests(requests, records)
    samples = 0.1 * rng.standard_normal((400, 64))
    about = MomentProvenance(params_hash(pipeline.params["text_encoder"]), "", 1, (2,))
    moments = SecondMoments({2: samples.T @ samples / 400}, 400, about)
    given = {"text_encoder": moments}
    edit = bank_solve.solve(concepts, pipeline, given, CONFIG)["text_encoder"]
    where = bank_solve.sites_of(concepts, pipeline)
    found = text_space.measure(
        concepts, pipeline.encoder, where, edit, moments, CONFIG, KEEP, CAPTIONS
    )
    return found, edit


def test_what_is_measured(pipeline: Pipeline, measured: tuple[TextSpace, WeightEdit]) -> None:
    found, edit = measured
    kept = {one.name: one for one in found.kept}
    assert set(kept) == {"cat", "beach", "a male doctor"}  # SNOW is edited.
    base = pipeline.params["text_encoder"]
    requests = [EditRequest(name, "x", TEMPLATES) for name in kept]
    prompts = spans.source_prompts(pipeline.encoder.tokenizer, requests)
    for i, name in enumerate(kept):
        old, new = (
            pipeline.encoder.model.apply({"params": params}, jnp.asarray(prompts.ids[i]))
            for params in (base, apply_edit(base, edit))
        )
        at = np.arange(2), prompts.positions[i]
        before, after = (np.asarray(o.hidden[2], np.float64)[at].mean(0) for o in (old, new))
        drift = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert kept[name].drift == pytest.approx(drift, rel=1e-3)
        before, after = (np.asarray(o.pooled, np.float64).mean(0) for o in (old, new))
        drift = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert kept[name].features == pytest.approx(drift, rel=1e-3)
        # With one layer the prediction is exact.
        assert kept[name].predicted == pytest.approx(kept[name].drift, rel=1e-3)
    assert [one.drift for one in found.kept] == sorted((k.drift for k in found.kept), reverse=True)
    assert [one.left for one in found.reached] == sorted(o.left for o in found.reached)[::-1]
    near = found.neighbours["a female doctor"]
    assert near == ("a male doctor", near.similarity, kept["a male doctor"].drift)
    assert found.naming is not None
    assert found.naming.count == 1
    assert found.apart is not None
    assert found.apart.count == 3
    assert {text for text, _ in found.worst} == set(CAPTIONS[1:])
    assert found.worst[0][1] == found.apart.most > found.apart.median > 0
    (layer,) = found.layers
    assert layer.norm == pytest.approx(np.linalg.norm(edit.deltas[2]))
    assert json.loads(json.dumps(text_space.as_json(found)))["layers"][0]["layer"] == 2


def test_names_are_found_as_words() -> None:
    captions = ["The Great  white shark!", "a greater white shark", "sharks", "my white-shark"]
    found = text_space.names_any(captions, ["great white shark", "shark"])
    assert found.tolist() == [True, True, False, False]


def test_the_most_similar_are_chosen_and_alike_ones_stand_together() -> None:
    # Edits 0 and 3 are alike, 1 and 4 too, 2 is like nobody; kept 6 is like edit 1.
    cosines = np.eye(8, 5) + 0.01
    for a, b, value in ((0, 3, 0.9), (1, 4, 0.8)):
        cosines[a, b] = cosines[b, a] = value
    cosines[6, 1] = 0.7
    names = tuple("abcdefgh")
    found = predicted_conflicts.most_similar(KeyMap(names, names[:5], cosines), edits=4, kept=1)
    assert set(found.columns) == {"a", "b", "d", "e"}
    assert abs(found.columns.index("a") - found.columns.index("d")) == 1
    assert found.rows == (*found.columns, "g")
    assert found.cosines[4, found.columns.index("b")] == 0.7
    assert found.cosines[found.rows.index("a"), found.columns.index("d")] == 0.9


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_chromium_shows_the_page(measured: tuple[TextSpace, WeightEdit], tmp_path: Path) -> None:
    path, (found, _) = tmp_path / "report.html", measured
    write_text_report(path, "a <i>model</i>", found, {"stage_two": 1.25}, {"task": "x"})
    html = path.read_text()
    bare = re.sub(r'src="data:image/svg\+xml;base64,[A-Za-z0-9+/=]+"', "", html)
    assert not re.search(r"src=|href|url\(|@import|https?://|<script|<b>dog|<i>model", bare)
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        """<pre id="text"></pre><pre id="images"></pre><script>
        const frame = document.createElement("iframe");
        frame.onload = () => {
          const page = frame.contentWindow.document;
          document.getElementById("text").textContent = page.body.textContent;
          document.getElementById("images").textContent =
            [...page.images].map((one) => one.naturalWidth).join(" ");
        };
        frame.src = "report.html";
        document.body.append(frame);</script>"""
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--allow-file-access-from-files"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", wrapper.as_uri()], capture_output=True, timeout=300, check=True
    )
    dom = done.stdout.decode()
    (widths,) = re.findall(r'<pre id="images">(.*?)</pre>', dom)
    assert len(widths.split()) == 4
    assert min(map(int, widths.split())) > 100
    (text,) = re.findall(r'<pre id="text">(.*?)</pre>', dom, re.DOTALL)
    worst, near = found.reached[0], found.neighbours["a female doctor"]
    for shown in (
        "3 concepts edited in a &lt;i&gt;model&lt;/i&gt;",
        "&lt;b&gt;dog → goldfish",
        f"{worst.left:.3f}",
        f"worst {100 * worst.left:.1f} %",
        f"{found.kept[0].drift:.3f}",
        f"{near.drift:.3f}",
        f"{found.layers[0].condition:.2g}",
        "stage two 1.2 s",
        "the art of Salvador Dali",
        "No two edits have nearly the same key.",
    ):
        assert shown in text, shown
