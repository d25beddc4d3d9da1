"""ViT-B/16 and CLIP ViT-L/14 at their real sizes against transformers: random weights, float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from emcid_jax.evaluation.judges.classifier import load_judge
from emcid_jax.evaluation.judges.clip import load_clip
from emcid_jax.evaluation.judges.features import judge_features
from emcid_jax.models.text.tokenizer import save_tokenizer

pytestmark = pytest.mark.slow
TEXTS = ["a photo of a dog", "a bicycle replica with a clock as the front wheel"]


def assert_close(ours: np.ndarray, theirs: torch.Tensor, what: str) -> None:
    wanted = theirs.detach().numpy()
    error = np.abs(ours - wanted).max() / np.abs(wanted).max()
    print(f"\n{what}: max. relative error {error:.1e}")
    assert error <= 1e-4


def test_vit_base(tmp_path: Path) -> None:
    """google/vit-base-patch16-224: probabilities, and the features that FID may use."""
    torch.manual_seed(0)
    labels = {i: f"name {i}" for i in range(1000)}
    config = transformers.ViTConfig(id2label=labels, initializer_range=0.05)
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    judge = load_judge(tmp_path)
    pixels = torch.tensor(images / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        states = theirs.vit(pixels).last_hidden_state
        probabilities = theirs(pixels).logits.softmax(-1)
    assert_close(judge.classify(images, batch=2)["object"], probabilities, "ViT-B/16")
    assert_close(judge_features(judge)(images, batch=2), states[:, 0], "its features")


def test_clip_large(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """openai/clip-vit-large-patch14, both halves, from 512 px; a tokenizer of fewer tokens."""
    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tiny_pipeline_folder / "tokenizer")
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision |= {"num_attention_heads": 16, "patch_size": 14}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    about = {"image_mean": [0.481, 0.458, 0.408], "image_std": [0.269, 0.261, 0.276]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    images = np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3), np.uint8)
    processor = transformers.CLIPImageProcessorPil(**about)
    clip = load_clip(tmp_path)
    with torch.no_grad():
        out = theirs(
            pixel_values=processor(list(images), return_tensors="pt")["pixel_values"],
            **clip.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt"),
        )
    assert_close(clip.images(images, batch=2), out.image_embeds, "CLIP ViT-L/14, images")
    assert_close(clip.embed_texts(TEXTS), out.text_embeds, "texts")
