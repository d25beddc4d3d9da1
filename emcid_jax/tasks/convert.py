"""Task `convert`: a model as an Orbax checkpoint, which every device reads its own share of."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jaxtyping import Bool

from emcid_jax.config import ModelConfig
from emcid_jax.models.weights.params import hf_name, params_hash
from emcid_jax.pipelines.pipeline import load_pipeline
from emcid_jax.pipelines.stored_types import commonest, stored_types
from emcid_jax.runtime import parallel
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.terminal import show
from emcid_jax.storage import checkpoints
from emcid_jax.storage.files import replacing_folder
from emcid_jax.workflow.inputs import require_model
from emcid_jax.workflow.workdir import require_writable, write_json

BESIDE = ("tokenizer", "tokenizer_2", "judge", "image_tower")
"""Folders of a model that are copied as they are."""


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Settings of this task."""

    task: Literal["convert"] = "convert"
    """Which task of main runs."""
    model: ModelConfig = ModelConfig()  # noqa: RUF009 (frozen)
    """What is converted; `export_dtype` is the stored type, `source` that of every part."""


Config = ConvertConfig
UNREAD = ("model.dtype", "model.unet_storage")
"""Settings that the task has no use for: see `config.unread`."""
WRITES = ("*",)
"""What the task writes in its workdir, which must be new."""


def run(config: ConvertConfig, workdir: Path) -> None:
    """Makes `workdir` a model folder with Orbax weights, for `config.model.path` of other runs.

    It appears by one rename, read back and compared. UserError if something is there already.
    """
    require_writable(workdir, (), config)
    _require_empty(workdir)
    source = require_model(config.model)
    held = functools.partial(parallel.shapes, sharding=parallel.replicated(parallel.make_mesh()))
    pipeline = load_pipeline(source, variant=config.model.variant, held=held)
    params = {
        part: _cast(tree, _types(config.model, source / part, tree))
        for part, tree in pipeline.params.items()
    }
    wide = {part: jax.tree.map(lambda _: "float32", tree) for part, tree in params.items()}
    hashes = {part: params_hash(_cast(tree, wide[part])) for part, tree in params.items()}
    configs = pipeline.family.config_files
    with replacing_folder(workdir) as staging:
        checkpoints.save_weights(staging, params, hashes)
        for name in ("model_index.json", *(f"{part}/{file}" for part, file in configs.items())):
            (staging / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, staging / name)
        for name in BESIDE:
            if (source / name).is_dir():
                shutil.copytree(source / name, staging / name)
        for part in pipeline.family.text_parts:
            said = staging / part / configs[part]
            kinds = [leaf.dtype.name for leaf in jax.tree.leaves(params[part])]
            write_json(said, json.loads(said.read_text()) | {"dtype": commonest(kinds)})
        again = load_pipeline(staging, held=held).params
        for part, digest in hashes.items():
            if params_hash(again[part]) != digest:
                raise UserError(f"{workdir}: {part} is not read back as it was written; try again")
        _require_empty(workdir)
    show(f"converted; use --config.model.path={workdir}")


def _require_empty(workdir: Path) -> None:
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"--workdir is {str(workdir)!r}, which is not empty; give a new folder")


def _types(config: ModelConfig, source: Path, tree: Any) -> Any:
    """The tree of types to store a part in: what is asked for, or what each tensor is stored in."""
    if config.export_dtype != "source":
        return jax.tree.map(lambda _: config.export_dtype, tree)
    types = stored_types(source, source.name, config.variant)
    named = {path: types[hf_name(path)] for path in flatten_dict(tree)}
    return unflatten_dict(named)


def _cast(tree: Any, types: Any) -> Any:
    """UserError if a value does not fit."""
    leaves, form = jax.tree.flatten(tree)
    kinds = tuple(jax.tree.leaves(types))
    cast, fits = _cast_all(leaves, kinds)
    if not fits:
        asked = " or ".join(sorted(set(kinds)))
        raise UserError(f"config.model.export_dtype is {asked!r}, too small for these weights")
    return jax.tree.unflatten(form, cast)


@functools.partial(jax.jit, static_argnums=1)
def _cast_all(leaves: list[Array], kinds: tuple[str, ...]) -> tuple[list[Array], Bool[Array, ""]]:
    cast = [leaf.astype(kind) for leaf, kind in zip(leaves, kinds, strict=True)]
    return cast, jnp.array([jnp.isfinite(leaf).all() for leaf in cast]).all()
