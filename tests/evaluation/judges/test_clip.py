"""CLIP scores against transformers' whole model, from a folder that it wrote."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from emcid_jax.evaluation.judges.clip import load_clip
from emcid_jax.evaluation.statistics.clip_score import clip_scores
from emcid_jax.models.text.tokenizer import load_tokenizer, save_tokenizer
from emcid_jax.runtime.errors import UserError

TEXTS = ["a photo of a dog", "snow", "", "a golden retriever on the beach " * 9]


@pytest.fixture(scope="module")
def folder(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    tokenizer = load_tokenizer(tiny_pipeline_folder / "tokenizer")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "initializer_range": 0.4}
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config=sizes | {"image_size": 24, "patch_size": 8, "hidden_act": "gelu"},
        projection_dim=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(path)
    save_tokenizer(tokenizer, path)
    about = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (path / "preprocessor_config.json").write_text(json.dumps(about))
    return path


def test_scores_equal_transformers(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 30, 3), np.uint8)
    clip = load_clip(folder)
    ours = clip_scores(clip.images(images, batch=3), clip.embed_texts(TEXTS))

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(
        folder, size={"shortest_edge": 24}, crop_size=24
    )
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    tokens = clip.tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = model(pixel_values=pixels, **tokens).logits_per_image
        # Of a model whose logit scale is 100.
        theirs = theirs.diagonal().numpy() / model.logit_scale.exp().numpy() * 100
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert np.ptp(ours) > 5  # The random model does tell them apart.


def test_texts_without_a_number_are_named(folder: Path) -> None:
    clip = load_clip(folder)
    projection = {"text_projection": {"kernel": np.full((16, 12), np.inf, np.float32)}}
    clip = dataclasses.replace(clip, params={**clip.params, **projection})
    with pytest.raises(UserError, match="CLIP vectors of text 0 and 1 more are not finite"):
        clip.embed_texts(TEXTS[:2])


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the CLIP model's config is '.*config\.json': no such"):
        load_clip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": config["vision_config"]}))
    with pytest.raises(UserError, match=r"field text_config is missing; give the folder of a who"):
        load_clip(tmp_path)
