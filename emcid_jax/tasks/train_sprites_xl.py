"""Task `train_sprites_xl`: makes the bundled model of SDXL's shape out of the first sprite model.

Order: both text encoders, pictures, what the UNet reads of them, UNet. The UNet continues from its
own file in the work folder; the finished model is written to `workdir/model`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.models.text.encoder import FIRST, SECOND, TextEncoder
from emcid_jax.models.text.tokenizer import tokenize
from emcid_jax.pipelines.families import SDXL
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline, make_pipeline, save_pipeline
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.captions import Caption, sample_captions
from emcid_jax.sprites.drawn_pictures import drawn_pictures
from emcid_jax.sprites.training.text import tokenise
from emcid_jax.sprites.training.unet import encode_images, encode_texts, start_unet, train_unet
from emcid_jax.sprites.xl import recipe as sizes
from emcid_jax.sprites.xl.encoders import first_encoder, read, second_encoder
from emcid_jax.sprites.xl.micro_conditions import varied
from emcid_jax.sprites.xl.recipe import XlRecipe
from emcid_jax.sprites.xl.unet_rows import XlData, xl_rows
from emcid_jax.sprites.xl.warm_start import grow_unet, stitch
from emcid_jax.storage.files import write_atomically
from emcid_jax.workflow import workdir as folders


@dataclasses.dataclass(frozen=True)
class TrainXlConfig:
    """Settings of this task."""

    task: str = "train_sprites_xl"
    """Which task of main runs."""
    images: int = XlRecipe.images
    """Drawn training pictures."""
    scale: float = 1.0
    """Multiplies the number of steps; below 1 for a trial."""


Config = TrainXlConfig
WRITES = ("images.npy", "*.train", "model")
"""What the task writes in its workdir."""
LOOK = "model"
"""Which of it to open first."""


def run(config: TrainXlConfig, workdir: Path) -> None:
    """Trains what `workdir` does not hold yet and writes `workdir/model`."""
    folders.require_writable(workdir, WRITES, config)
    with folders.exclusive(workdir, WRITES):
        recipe = XlRecipe(images=config.images)
        _train(dataclasses.replace(recipe, unet=recipe.unet.scaled(config.scale)), workdir)


def _train(recipe: XlRecipe, workdir: Path) -> None:
    base = load_pipeline(model_folder(BUNDLED))
    captions = sample_captions(recipe.images, recipe.image_seed)
    images = drawn_pictures(captions, recipe.image_seed, workdir / "images.npy")

    old, some = base.encoder, captions[: sizes.STITCHED]
    wanted, pooled = encode_texts(old.model, old.params, _ids(old, some))
    silence = tokenize(old.tokenizer, [""])
    empty = _flat(encode_texts(old.model, old.params, silence)[0]).mean(0)
    encoders, configs = _encoders(base, pooled.astype(np.float32))
    reads = [read(each.model, each.params, _ids(each, captions)) for each in encoders]
    states = tuple(each.states for each in reads)
    stitched = stitch([_flat(each[: len(some)]) for each in states], _flat(wanted), empty)

    shown, time_ids = varied(images, recipe.image_seed)
    factor = base.vae.config.scaling_factor
    mean, std = (part * factor for part in encode_images(base.vae, base.params["vae"], shown))
    told = cast(np.ndarray, reads[-1].projected)
    batch_at = xl_rows(XlData(mean, std, states, told, time_ids), recipe.unet)
    configs["unet"] = sizes.unet_config()
    unet = UNet2DCondition(UNetConfig.from_dict(configs["unet"]))
    fresh = start_unet(unet, batch_at(0), recipe.unet.seed)
    start = grow_unet(fresh, base.params["unet"], stitched, empty)
    trained = train_unet(unet, base.schedule, start, batch_at, recipe.unet, workdir)

    configs |= {part: base.configs[part] for part in ("vae", "scheduler")}
    params = {each.name: each.params for each in encoders}
    params |= {"unet": trained, "vae": base.params["vae"]}
    tokenizers = {each.name: each.tokenizer for each in encoders}
    model = workdir / "model"
    made = make_pipeline(configs, params, tokenizers, model, family=SDXL)
    save_pipeline(made, model, jnp.float16)
    for file in (base.folder / "judge").iterdir():
        write_atomically(model / "judge" / file.name, file.read_bytes())


def _encoders(
    base: Pipeline, pooled: np.ndarray
) -> tuple[tuple[TextEncoder, TextEncoder], dict[str, Any]]:
    """Both text encoders and their configs."""
    from transformers import CLIPTokenizer  # a second to import

    folder = str(base.folder / "tokenizer")
    padded = cast(Any, CLIPTokenizer.from_pretrained(folder, pad_token=sizes.PAD))
    old = jax.device_get(base.encoder.params)
    config = base.encoder.model.config
    heads, end = config.num_attention_heads, config.eos_token_id
    configs = sizes.text_configs(base.configs[FIRST], padded.pad_token_id)
    first, second = (ClipTextConfig.from_dict(configs[part]) for part in (FIRST, SECOND))
    wide = second_encoder(old, heads, end, padded.pad_token_id, pooled, seed=5)
    return (
        TextEncoder(FIRST, ClipTextModel(first), first_encoder(old), base.encoder.tokenizer),
        TextEncoder(SECOND, ClipTextModel(second, projection=True), wide, padded),
    ), configs


def _ids(encoder: TextEncoder, captions: list[Caption]) -> np.ndarray:
    return tokenise(encoder.tokenizer, captions, encoder.tokenizer.model_max_length)[0]


def _flat(states: np.ndarray) -> np.ndarray:
    return states.reshape(-1, states.shape[-1]).astype(np.float32)
