"""Parameters to and from safetensors under their Hugging Face names.

A parameter tree is a nested dict whose keys, joined by ".", are the names on disk. Only leaves
differ: Flax's `kernel`, `scale` and `embedding` are called `weight` there, and kernels are laid
out (out, in, ...) instead of (..., in, out).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from emcid_jax.errors import UserError
from emcid_jax.files import replacing
from emcid_jax.models.weight_files import weight_files

Params = dict[str, Any]
Rename = Callable[[str], str | None]

_WEIGHT_LEAVES = ("kernel", "scale", "embedding")
# Index buffers that older transformers versions wrote next to the weights.
_BUFFERS = ("position_ids",)
_FLOATS = ("F64", "F32", "F16", "BF16")


def abstract_params(module: nn.Module, *inputs: Any, **options: Any) -> Params:
    """Shapes and dtypes of the parameters of `module`, computed without allocating them.

    `inputs` and `options` (e.g. `method`) are what `module.init` takes after the key; inputs may
    be `jax.ShapeDtypeStruct`s. The result is the inner tree: use it as `{"params": tree}`.
    """

    def init(*arrays: Any) -> Any:
        return module.init(jax.random.key(0), *arrays, **options)["params"]

    return jax.eval_shape(init, *inputs)


def hf_name(path: tuple[str, ...]) -> str:
    """Name on disk of the parameter at `path` in the tree."""
    *parents, leaf = path
    return ".".join([*parents, "weight" if leaf in _WEIGHT_LEAVES else leaf])


def to_hf(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tree as flat host arrays in the names and layouts of the disk, sorted by name.

    Raises `ValueError` if two leaves share a name on disk.
    """
    flat = _flat(params)
    named = {hf_name(path): _to_disk(path[-1], np.asarray(leaf)) for path, leaf in flat.items()}
    if len(named) != len(flat):
        raise ValueError(f"{len(flat)} parameters have only {len(named)} names on disk")
    return dict(sorted(named.items()))


def read_params(
    folder_or_file: Path, abstract: Params, rename: Rename | None = None, variant: str = ""
) -> Params:
    """Read the parameters that `abstract` describes from safetensors.

    Args:
        folder_or_file: one `*.safetensors` file, or a folder that holds one (a sharded set with
            `*.index.json` counts as one).
        abstract: tree of `jax.ShapeDtypeStruct`, see `abstract_params`.
        rename: maps a name on disk to the expected name, or to None to skip that tensor.
        variant: which files of the folder, see `weight_files`.

    Returns:
        A tree like `abstract` of float32 (or `abstract`'s dtype) arrays; half precision on disk
        is widened, and a linear layer may be stored as a 1x1 convolution (old autoencoders).

    Raises:
        UserError: no such file, a damaged file, or, all in one message, the missing and the
            unexpected names, the wrong shapes and dtypes and the tensors with NaN or infinity.
    """
    expected = {hf_name(path): (path, leaf) for path, leaf in _flat(abstract).items()}
    leaves: dict[tuple[str, ...], jax.Array] = {}
    problems = _Problems()
    for stored, shape, kind, load in _tensors(folder_or_file, variant):
        name = rename(stored) if rename else stored
        if name is None or stored.rsplit(".", 1)[-1] in _BUFFERS:
            continue
        if name not in expected:
            problems.unexpected.append(stored)
            continue
        path, leaf = expected[name]
        wanted = _disk_shape(path[-1], leaf.shape)
        pointwise = path[-1] == "kernel" and len(wanted) == 2 and shape == (*wanted, 1, 1)
        if path in leaves:
            problems.unexpected.append(f"{stored} (a second {name})")
        elif shape != wanted and not pointwise:
            problems.wrong.append(f"{stored} has shape {shape}, expected {wanted}")
            leaves[path] = leaf
        elif kind not in _FLOATS:
            problems.wrong.append(f"{stored} has type {kind}, expected one of {_FLOATS}")
            leaves[path] = leaf
        else:
            with np.errstate(over="ignore"):  # reported below, with the names
                array = _from_disk(path[-1], load().reshape(wanted)).astype(leaf.dtype)
            if not np.isfinite(array).all():
                problems.non_finite.append(stored)
            leaves[path] = jnp.asarray(array)
    problems.missing = sorted(name for name, (path, _) in expected.items() if path not in leaves)
    problems.raise_if_any(folder_or_file)
    return unflatten_dict({path: leaves[path] for path, _ in expected.values()})


def write_params(path: Path, params: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> None:
    """Write the tree to the safetensors file `path` in `dtype`, atomically.

    The file is complete or absent whenever the process dies. Raises `UserError` if a value is
    not finite or does not fit `dtype`, or the file cannot be written.
    """
    with np.errstate(over="ignore"):  # reported below, with the names
        named = {name: a.astype(dtype, order="C") for name, a in to_hf(params).items()}
    bad = [name for name, array in named.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(
            f"{path}: not written, values are NaN, infinite or too large for {jnp.dtype(dtype)}: "
            f"{_listed(bad)}"
        )
    try:
        with replacing(path) as temporary:
            save_file(named, temporary, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def params_hash(params: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of the tree, in name order."""
    digest = hashlib.sha256()
    for name, array in to_hf(params).items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass
class _Problems:
    """Everything wrong with one checkpoint, so that the user sees it at once."""

    missing: list[str] = dataclasses.field(default_factory=list)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    non_finite: list[str] = dataclasses.field(default_factory=list)

    def raise_if_any(self, source: Path) -> None:
        found = [
            f"{label}: {_listed(names)}"
            for label, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("wrong shape or type", self.wrong),
                ("NaN or infinite", self.non_finite),
            )
            if names
        ]
        if found:
            raise UserError(f"{source}: weights do not fit the model's config; " + "; ".join(found))


def _flat(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    return cast(dict[tuple[str, ...], Any], flatten_dict(dict(tree)))


def _listed(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _to_disk(leaf: str, array: np.ndarray) -> np.ndarray:
    """(..., in, out) -> (out, in, ...) for kernels; anything else as it is."""
    if leaf != "kernel":
        return array
    order = (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
    return array.transpose(order)


def _from_disk(leaf: str, array: np.ndarray) -> np.ndarray:
    """(out, in, ...) -> (..., in, out) for kernels; anything else as it is."""
    if leaf != "kernel":
        return array
    return array.transpose((*range(2, array.ndim), 1, 0))


def _disk_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if leaf == "kernel" else tuple(shape)


Tensor = tuple[str, tuple[int, ...], str, Callable[[], np.ndarray]]


def _tensors(source: Path, variant: str) -> Iterator[Tensor]:
    """Name, shape, type and loader of each stored tensor, one file open at a time."""
    for file in weight_files(source, variant):
        try:
            with safe_open(file, framework="np") as handle:
                for name in handle.keys():  # noqa: SIM118 (not a mapping)
                    view = handle.get_slice(name)
                    yield (
                        name,
                        tuple(view.get_shape()),
                        view.get_dtype(),
                        lambda name=name: handle.get_tensor(name),
                    )
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; give a *.safetensors file or folder") from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a readable safetensors file: {error}") from error
