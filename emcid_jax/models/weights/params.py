"""Parameters to and from safetensors under their Hugging Face names.

A parameter tree is a nested dict whose keys, joined by ".", are the names on disk. Only leaves
differ: Flax's `kernel`, `scale` and `embedding` are called `weight` there, and kernels are laid
out (out, in, ...) instead of (..., in, out).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from jaxtyping import DTypeLike
from safetensors import SafetensorError

from emcid_jax.models.weights.safetensors_files import FLOATS, read_header, read_tensor
from emcid_jax.models.weights.shards import weight_files
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage import checksums

Params = dict[str, Any]
Rename = Callable[[str], str | None]

_WEIGHT_LEAVES = ("kernel", "scale", "embedding")
# Index buffers that older transformers versions wrote next to the weights.
_BUFFERS = ("position_ids",)


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
    folder_or_file: Path,
    abstract: Params,
    rename: Rename | None = None,
    variant: str = "",
) -> Params:
    """Read the parameters that `abstract` describes from safetensors.

    Tensors go to their devices one at a time: beside the result, the host holds one of them.

    Args:
        folder_or_file: one `*.safetensors` file, or a folder that holds one (a sharded set with
            `*.index.json` counts as one).
        abstract: tree of `jax.ShapeDtypeStruct`, see `abstract_params`; their shardings say where
            each parameter goes, by default to the default device.
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
    files = weight_files(folder_or_file, variant)
    headers = {file: read_header(file) for file in files}  # no shard is read if one is damaged
    for file, header in headers.items():
        at = f" in {file.name}" if len(files) > 1 else ""
        for stored in sorted(header.shapes, key=header.offsets.__getitem__):
            shape, kind = header.shapes[stored], header.kinds[stored]
            name = rename(stored) if rename else stored
            if name is None or stored.rsplit(".", 1)[-1] in _BUFFERS:
                continue
            if name not in expected:
                problems.unexpected.append(stored + at)
                continue
            path, leaf = expected[name]
            wanted = _disk_shape(path[-1], leaf.shape)
            pointwise = path[-1] == "kernel" and len(wanted) == 2 and shape == (*wanted, 1, 1)
            if path in leaves:
                problems.unexpected.append(f"{stored}{at} (a second {name})")
            elif shape != wanted and not pointwise:
                problems.wrong.append(f"{stored}{at} has shape {shape}, expected {wanted}")
                leaves[path] = leaf
            elif kind not in FLOATS:
                problems.wrong.append(
                    f"{stored}{at} has type {kind}, expected one of {tuple(FLOATS)}"
                )
                leaves[path] = leaf
            else:
                array = read_tensor(file, header, stored).reshape(wanted)
                with np.errstate(over="ignore"):  # reported below, with the names
                    array = _from_disk(path[-1], array).astype(leaf.dtype, order="C", copy=False)
                if not np.isfinite(array).all():
                    problems.non_finite.append(stored + at)
                leaves[path] = _placed(array, leaf.sharding)
    problems.missing = sorted(name for name, (path, _) in expected.items() if path not in leaves)
    problems.raise_if_any(files[0] if len(files) == 1 else folder_or_file)
    return unflatten_dict({path: leaves[path] for path, _ in expected.values()})


def write_params(
    path: Path,
    params: Mapping[str, Any],
    dtype: DTypeLike | Mapping[str, str] = jnp.float32,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write the tree to the safetensors file `path` in `dtype`, one or one per name, atomically.

    The file is complete or absent whenever the process dies. `about` goes into its metadata. Raises
    `UserError` if a value is not finite or does not fit `dtype`, or the file cannot be written.
    """
    arrays = to_hf(params)
    types = dtype if isinstance(dtype, Mapping) else dict.fromkeys(arrays, dtype)
    with np.errstate(over="ignore"):  # reported below, with the names
        named = {n: a.astype(jnp.dtype(types[n]), order="C") for n, a in arrays.items()}
    bad = [name for name, array in named.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(
            f"{path}: not written, values are NaN, infinite or too large for "
            f"{named[bad[0]].dtype}: {_listed(bad)}"
        )
    try:
        checksums.write_tensors(path, named, {"format": "pt", **(about or {})})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written: {error}") from error


def params_hash(params: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of the tree, in name order."""
    digest = hashlib.sha256()
    flat = _flat(params)
    for name, path in sorted((hf_name(path), path) for path in flat):
        array = _to_disk(path[-1], np.asarray(flat[path]))
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
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


def _placed(array: np.ndarray, sharding: Sharding | None) -> jax.Array:
    """On its devices; each process gives its own ones what they hold."""
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
