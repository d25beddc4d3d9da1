"""Task `train_sprites`: makes the bundled model from nothing, part by part, resumable.

Order: tokenizer, pictures, text encoder, autoencoder, UNet, judges. Every part continues from its
own file in the work folder; the finished model is written to `workdir/model`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from emcid_jax.diffusion.schedule import NoiseSchedule
from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.image.vae import AutoencoderKL, VaeConfig
from emcid_jax.models.scoring.clip_vision import ClipVisionConfig, ClipVisionModelWithProjection
from emcid_jax.models.scoring.vit import ViTConfig, ViTForImageClassification
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.models.text.tokenizer import load_tokenizer, tokenize
from emcid_jax.models.weights import params as weights
from emcid_jax.pipelines.diffusers_layout import write_json
from emcid_jax.pipelines.pipeline import make_pipeline, save_pipeline
from emcid_jax.sprites.captions import Caption, sample_captions
from emcid_jax.sprites.catalogue import catalogue
from emcid_jax.sprites.drawn_pictures import drawn_pictures
from emcid_jax.sprites.factors import LABELS, label_array
from emcid_jax.sprites.tokenizer import train_tokenizer
from emcid_jax.sprites.training import recipe as sizes
from emcid_jax.sprites.training.interchange import train_interchange
from emcid_jax.sprites.training.judge import (
    fold_classifier,
    judge_config,
    train_classifier,
    train_image_tower,
)
from emcid_jax.sprites.training.loop import Recipe
from emcid_jax.sprites.training.recipe import SpriteRecipe
from emcid_jax.sprites.training.text import tokenise, train_text_encoder
from emcid_jax.sprites.training.unet import (
    UNetData,
    caption_rows,
    encode_images,
    encode_texts,
    start_unet,
    train_unet,
)
from emcid_jax.sprites.training.vae import train_vae
from emcid_jax.workflow import workdir as folders


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of this task."""

    task: str = "train_sprites"
    """Which task of main runs."""
    images: int = SpriteRecipe.images
    """Drawn training pictures."""
    scale: float = 1.0
    """Multiplies every part's number of steps; below 1 for a trial."""


Config = TrainConfig
WRITES = ("tokenizer", "images.npy", "*.train", "model")
"""What the task writes in its workdir."""
LOOK = "model"
"""Which of it to open first."""


def run(config: TrainConfig, workdir: Path) -> None:
    """Trains every part that `workdir` does not hold yet and writes `workdir/model`."""
    folders.require_writable(workdir, WRITES, config)
    with folders.exclusive(workdir, WRITES):
        _train(_scaled(config), workdir)


def _train(recipe: SpriteRecipe, workdir: Path) -> None:
    if not (workdir / "tokenizer" / "special_tokens_map.json").exists():
        _make_tokenizer(workdir / "tokenizer")
    tokenizer = load_tokenizer(workdir / "tokenizer")
    captions = sample_captions(recipe.images, recipe.image_seed)
    images = drawn_pictures(captions, recipe.image_seed, workdir / "images.npy")

    # Master weights stay float32; the text encoder runs in bfloat16, which halves its time.
    text_json = sizes.text_config(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    text_sizes = ClipTextConfig.from_dict(text_json)
    text = ClipTextModel(text_sizes, jnp.bfloat16)
    text_params, _ = train_interchange(
        text,
        train_text_encoder(text, tokenizer, sizes.MAX_LENGTH, recipe.text, workdir),
        tokenizer,
        sizes.MAX_LENGTH,
        recipe.interchange,
        workdir,
    )

    vae = AutoencoderKL(VaeConfig.from_dict(sizes.vae_config()))
    vae_params = train_vae(vae, images, recipe.vae, recipe.vae_whole, workdir)
    mean, std = encode_images(vae, vae_params, images)
    factor = float(1 / np.sqrt(np.mean(std**2) + mean.std() ** 2))

    ids = tokenise(tokenizer, captions, sizes.MAX_LENGTH)[0]
    states, pooled = encode_texts(text, text_params, ids)
    empty, _ = encode_texts(text, text_params, np.asarray(tokenize(tokenizer, [""])))
    data = UNetData(mean * factor, std * factor, states, empty[0])
    unet = UNet2DCondition(UNetConfig.from_dict(sizes.unet_config()))
    schedule = NoiseSchedule.from_dict(sizes.scheduler_config())
    batch_at = caption_rows(data, recipe.unet)
    start = start_unet(unet, batch_at(0), recipe.unet.seed)
    unet_params = train_unet(unet, schedule, start, batch_at, recipe.unet, workdir)

    configs = {
        "text_encoder": text_json,
        "unet": sizes.unet_config(),
        "vae": sizes.vae_config(factor),
        "scheduler": sizes.scheduler_config(),
    }
    params = {"text_encoder": text_params, "unet": unet_params, "vae": vae_params}
    model = workdir / "model"
    save_pipeline(make_pipeline(configs, params, tokenizer, model), model, jnp.float16)
    _make_judges(model, images, captions, pooled, recipe, workdir)


def _scaled(config: TrainConfig) -> SpriteRecipe:
    recipe = SpriteRecipe(images=config.images)
    parts: dict[str, Any] = {
        name: part.scaled(config.scale)
        for name, part in vars(recipe).items()
        if isinstance(part, Recipe)
    }
    return dataclasses.replace(recipe, **parts)


def _make_tokenizer(folder: Path) -> None:
    world = catalogue()
    aliases = [alias.name for alias in world.aliases]
    # Names count eightfold, so that most words of names become one token.
    texts = [caption.text for caption in sample_captions(60_000, seed=1)]
    texts += 8 * [*world.objects, *aliases, *world.artists]
    train_tokenizer(texts, folder, vocab_size=sizes.VOCABULARY, max_length=sizes.MAX_LENGTH)


def _make_judges(
    model: Path,
    images: np.ndarray,
    captions: list[Caption],
    pooled: np.ndarray,
    recipe: SpriteRecipe,
    workdir: Path,
) -> None:
    """`model/judge` (ViT over names) and `model/image_tower` (CLIP-style, both projections)."""
    sizes_json = sizes.judge_sizes()
    vit_sizes = ViTConfig.from_dict({**sizes_json, "num_labels": LABELS})
    labels = label_array([caption.picture for caption in captions])
    factors = train_classifier(
        ViTForImageClassification(vit_sizes, jnp.bfloat16), images, labels, recipe.judge, workdir
    )
    folded, names = fold_classifier(factors)
    write_json(model / "judge" / "config.json", judge_config(vit_sizes, names))
    weights.write_params(model / "judge" / "model.safetensors", folded, jnp.float16)

    tower_json = {**sizes_json, "projection_dim": 64, "hidden_act": "quick_gelu"}
    tower = ClipVisionModelWithProjection(ClipVisionConfig.from_dict(tower_json), jnp.bfloat16)
    trained = train_image_tower(tower, images, pooled, recipe.image_tower, workdir)
    tower_json |= {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
    }
    write_json(model / "image_tower" / "config.json", tower_json)
    weights.write_params(
        model / "image_tower" / "model.safetensors",
        {**trained["image"], "text_projection": trained["text_projection"]},
        jnp.float16,
    )
