"""`python -m studies.small_encoders --workdir W`: encoders of several shapes, trained alike.

A reduced sprite world of `NAMES` objects, and no UNet: an encoder is taught to read a name's look
at the end token and at the subject, and to hand names on after block `late`
(`sprites/training/interchange.py`). `studies.architectures` edits them. A killed run goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.pipelines.pipeline import Pipeline, load_pipeline
from emcid_jax.runtime import parallel
from emcid_jax.sprites.bundled import BUNDLED, model_folder
from emcid_jax.sprites.captions import OBJECT_TEMPLATES, Caption
from emcid_jax.sprites.catalogue import Picture, catalogue
from emcid_jax.sprites.factors import LABELS, label_array
from emcid_jax.sprites.training import recipe as sizes
from emcid_jax.sprites.training.interchange import interchange_batches, interchange_loss
from emcid_jax.sprites.training.loop import Recipe, fit
from emcid_jax.sprites.training.text import tokenise

NAMES = 200
"""Objects of the world: the first so many of at most `LONGEST` tokens."""
LONGEST = 3
TOKENS = 10
"""Of the longest caption."""
RECIPE = Recipe(steps=600, batch=32, learning_rate=2e-3, warmup=50, average=0.99)


class Shape(NamedTuple):
    """An encoder's sizes, and what its training asks of them."""

    width: int
    blocks: int
    heads: int
    mlp: int
    late: int
    """Block whose output names are handed on from."""

    @property
    def parameters(self) -> int:
        """Weights of all blocks, in matrices."""
        return self.blocks * (4 * self.width**2 + 2 * self.width * self.mlp)


SHAPES = {
    "base": Shape(96, 8, 4, 384, 6),
    "MLP x 2": Shape(96, 8, 4, 768, 6),
    "MLP / 2": Shape(96, 8, 4, 192, 6),
    "4 blocks": Shape(96, 4, 4, 384, 2),
    "1 head": Shape(96, 8, 1, 384, 6),
    "early": Shape(96, 8, 4, 384, 4),
}
"""`early` is read at its last block or, like Stable Diffusion 2, at the last but one."""


class Encoder(NamedTuple):
    """A trained encoder in a pipeline whose other parts are the bundled model's and not used."""

    pipeline: Pipeline
    readout: dict[str, np.ndarray]
    """Final state -> logits of `factors.FACTORS`."""


def world_names(tokenizer: Any) -> list[int]:
    """Class ids of the reduced world."""
    names = list(catalogue().objects)
    lengths = [len(ids) - 2 for ids in tokenizer(names)["input_ids"]]
    return [i for i, length in enumerate(lengths) if length <= LONGEST][:NAMES]


def sample_caption(rng: np.random.Generator, classes: Sequence[int]) -> Caption:
    """A name in a template of the sprite world."""
    world = catalogue()
    drawn = classes[int(rng.integers(len(classes)))]
    name = world.objects[drawn]
    text = OBJECT_TEMPLATES[int(rng.integers(len(OBJECT_TEMPLATES)))].format(name)
    return Caption(text, name, Picture(look=world.looks[drawn]))


def captions(tokenizer: Any, count: int, seed: int) -> list[Caption]:
    """`count` captions of the reduced world."""
    rng, classes = np.random.default_rng(seed), world_names(tokenizer)
    return [sample_caption(rng, classes) for _ in range(count)]


def train(name: str, base: Pipeline, folder: Path) -> Encoder:
    """The encoder `name` of `SHAPES`, trained up to its last step in `folder`."""
    shape, tokenizer = SHAPES[name], base.encoder.tokenizer
    about = sizes.text_config(
        base.encoder.model.config.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id
    ) | {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.mlp,
        "projection_dim": shape.width,
    }
    model = ClipTextModel(ClipTextConfig.from_dict(about))
    keys = jax.random.split(jax.random.key(RECIPE.seed))
    start = {
        "text": model.init(keys[0], jnp.zeros((1, TOKENS), jnp.int32))["params"],
        "readout": {
            "kernel": jax.random.normal(keys[1], (shape.width, LABELS)) * shape.width**-0.5,
            "bias": jnp.zeros(LABELS),
        },
    }

    def loss(params: Any, batch: Any, key: Any) -> Any:
        del key
        return interchange_loss(model, params, batch, shape.late)

    batches = interchange_batches(_batches(tokenizer), RECIPE.seed, TOKENS)
    trained = jax.device_get(fit(file_name(name), loss, start, batches, RECIPE, folder))
    pipeline = dataclasses.replace(
        base,
        text=model,
        params=base.params | {"text_encoder": trained["text"]},
        configs={**base.configs, "text_encoder": about},
    )
    return Encoder(pipeline, trained["readout"])


def file_name(name: str) -> str:
    """A name as part of a path."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _batches(tokenizer: Any) -> Callable[[int], tuple[np.ndarray, ...]]:
    classes = world_names(tokenizer)

    def batch_at(step: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([RECIPE.seed, step])
        drawn = [sample_caption(rng, classes) for _ in range(RECIPE.batch)]
        ids, _, _, subjects = tokenise(tokenizer, drawn, TOKENS)
        return ids, subjects, label_array([caption.picture for caption in drawn])

    return batch_at


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains the encoders that the workdir does not hold."""
    parser = argparse.ArgumentParser(prog="python -m studies.small_encoders", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="checkpoints")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=[*SHAPES], help="encoders")
    options = parser.parse_args(arguments)
    parallel.use_cpu_devices(0)
    base = load_pipeline(model_folder(BUNDLED))
    for name in options.only:
        train(name, base, options.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
