"""Task `convert`: a model as an Orbax checkpoint, which every device reads its own share of."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from emcid_jax.config import ModelConfig
from emcid_jax.editing.export.text_encoder import stored_dtype
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.diffusers_layout import CONFIG_FILES, WEIGHT_FILES
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.runtime import checkpoints, parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.files import replacing_folder
from emcid_jax.workflow.inputs import require_model
from emcid_jax.workflow.workdir import require_writable, write_json

BESIDE = ("tokenizer", "judge", "image_tower")
"""Folders of a model that are copied as they are."""


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Settings of this task."""

    task: Literal["convert"] = "convert"
    """Which task of main runs."""
    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen)
    """What is converted; `export_dtype` is the stored type, `source` that of every part."""


Config = ConvertConfig
WRITES = ("*",)
"""What the task writes in its workdir, which must be new."""


def run(config: ConvertConfig, workdir: Path) -> None:
    """Makes `workdir` a model folder with Orbax weights, for `config.model.path` of other runs.

    It appears by one rename, read back and compared. UserError if something is there already.
    """
    require_writable(workdir, (), config)
    _require_empty(workdir)
    source = require_model(config.model)
    everywhere = parallel.replicated(parallel.make_mesh())
    pipeline = load_pipeline(source, variant=config.model.variant, sharding=everywhere)
    asked = config.model.export_dtype
    dtypes = {
        part: stored_dtype(source / part, config.model.variant) if asked == "source" else asked
        for part in WEIGHT_FILES
    }
    params = {part: _cast(tree, dtypes[part]) for part, tree in pipeline.params.items()}
    hashes = {part: params_hash(_cast(tree, "float32")) for part, tree in params.items()}
    with replacing_folder(workdir) as staging:
        checkpoints.save_weights(staging, params, hashes)
        for name in ("model_index.json", *(f"{part}/{x}" for part, x in CONFIG_FILES.items())):
            (staging / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, staging / name)
        for name in BESIDE:
            if (source / name).is_dir():
                shutil.copytree(source / name, staging / name)
        said = staging / "text_encoder" / CONFIG_FILES["text_encoder"]
        write_json(said, json.loads(said.read_text()) | {"dtype": dtypes["text_encoder"]})
        again = load_pipeline(staging, sharding=everywhere).params
        for part, digest in hashes.items():
            if params_hash(again[part]) != digest:
                raise UserError(f"{workdir}: {part} is not read back as it was written; try again")
        _require_empty(workdir)
    logging.info("%s: converted; use --config.model.path=%s", workdir, workdir)


def _require_empty(workdir: Path) -> None:
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"--workdir is {str(workdir)!r}, which is not empty; give a new folder")


def _cast(tree: Any, dtype: str) -> Any:
    """UserError if a value does not fit."""
    cast, fits = _cast_all(tree, dtype)
    if not fits:
        raise UserError(f"config.model.export_dtype is {dtype!r}, too small for these weights")
    return cast


@functools.partial(jax.jit, static_argnums=1)
def _cast_all(tree: Any, dtype: str) -> tuple[Any, Bool[Array, ""]]:
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
    return cast, jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(cast)]).all()
