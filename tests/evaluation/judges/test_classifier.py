"""The judge against the same random ViT in transformers, and its label table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from emcid_jax.evaluation.judges.classifier import load_judge
from emcid_jax.evaluation.judges.features import judge_features
from emcid_jax.evaluation.judges.labels import label_groups
from emcid_jax.runtime.errors import UserError

LABELS = [
    "tench, Tinca tinca",
    "goldfish",
    "crane",
    "artist: Claude Monet",
    "artist: Artist, with comma",
    "scene: beach",
    "gender: female",
    "gender: male",
]


@pytest.fixture(scope="module")
def folder(write_tiny_judge: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge")
    write_tiny_judge(path, LABELS, spread=0.3)
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]})
    )
    return path


def torch_probabilities(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    import torch
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(folder).eval()
    pixels = (images / 255.0 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    with torch.no_grad():
        logits = model(torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)).logits
    parts = {"object": [0, 1, 2], "artist": [3, 4], "scene": [5], "gender": [6, 7]}
    return {name: logits[:, ids].softmax(-1).numpy() for name, ids in parts.items()}


def test_probabilities_equal_transformers(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    found = load_judge(folder).classify(images, batch=2)
    expected = torch_probabilities(folder, images)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-5)
    assert np.ptp(found["object"][:, 0]) > 0.01  # the random model does tell images apart


def test_other_sizes_are_resized_as_pillow_does(folder: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 40, 40, 3), np.uint8)
    small = [
        np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BILINEAR)) for i in images
    ]
    found = load_judge(folder).classify(images)
    # Pillow rounds to whole grey values.
    for name, wanted in torch_probabilities(folder, np.stack(small)).items():
        np.testing.assert_allclose(found[name], wanted, atol=0.02)


def test_no_images(folder: Path) -> None:
    found = load_judge(folder).classify(np.zeros((0, 16, 16, 3), np.uint8))
    assert found["object"].shape == (0, 3)


def test_weights_that_give_no_number_are_named(folder: Path) -> None:
    judge = load_judge(folder)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, dict(judge.params))
    judge = dataclasses.replace(judge, params=broken)
    images = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match="the judge's scores of picture 0 and 1 more are not fin"):
        judge.classify(images)
    with pytest.raises(UserError, match="judge features of picture 0 and 1 more are not finite"):
        judge_features(judge)(images)


def test_labels_fall_into_groups() -> None:
    groups = label_groups(LABELS)
    assert set(groups) == {"object", "artist", "scene", "gender"}
    objects, artists = groups["object"], groups["artist"]
    assert objects.labels == (("tench", "Tinca tinca"), ("goldfish",), ("crane",))
    assert objects.columns == (0, 1, 2)
    assert objects.find("tinca  TINCA") == 0
    assert objects.find("Claude Monet") is None
    assert artists.find("claude monet") == 0
    assert artists.labels[1] == ("Artist, with comma",)
    assert groups["gender"].columns == (6, 7)


def test_usual_names_win_over_other_names() -> None:
    groups = label_groups(["heron, crane", "crane, lifting machine"])
    assert groups["object"].find("crane") == 1
    assert groups["object"].find("heron") == 0


def test_objects_come_first() -> None:
    with pytest.raises(ValueError, match="before"):
        label_groups(["artist: Monet", "tench"])


def test_fingerprint_follows_labels_and_preprocessing(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    first = load_judge(folder)
    assert first.fingerprint == load_judge(folder).fingerprint
    plain = load_judge(tmp_path)
    assert plain.mean == (0.5, 0.5, 0.5)
    assert plain.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id2label": None}, "id2label is missing"),
        ({"id2label": {"1": "tench"}}, "no entry '0'"),
        ({"id2label": {"0": "artist: Monet", "1": "tench"}}, "must come before"),
        ({"id2label": {str(i): "x" for i in range(9)}}, "classifier"),
    ],
)
def test_bad_folders_are_named(folder: Path, tmp_path: Path, change: dict, words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=words):
        load_judge(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_judge(tmp_path / "nowhere")
