"""Second moments of the keys over captions: all layers in one pass over the text encoder.

`C_l = E[k k^T]`, not centred, over every token of every caption from the start token to the first
end token; padding does not count (docs/second_moments.md). `caption_batches` puts captions into a
canonical order first, so the result does not depend on the order they come in, and counts what
begins alike; of the symmetric product only the blocks on and above the diagonal are computed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Float64, Int

from emcid_jax.editing.moments.caption_batches import canonical, make_batches
from emcid_jax.editing.moments.factored import Moment
from emcid_jax.models.text.clip import ClipTextModel, end_positions
from emcid_jax.models.weights.params import params_hash
from emcid_jax.runtime import typed_values
from emcid_jax.runtime.errors import UserError
from emcid_jax.runtime.finite import require_finite
from emcid_jax.runtime.parallel import (
    AXES,
    SPLIT,
    make_mesh,
    padded_size,
    place,
    replicated,
    sharded,
)
from emcid_jax.runtime.typed_values import Range
from emcid_jax.storage import checksums
from emcid_jax.storage.json_text import loads

_ABOUT = "second_moments"
_REMEDY = "compute it again"

# Bands that the product is computed in: 4 do 10 of its 16 blocks.
BANDS = 4


@dataclasses.dataclass(frozen=True)
class MomentProvenance:
    """What second moments were computed from."""

    model_hash: str
    """`params_hash` of the text encoder's parameters."""
    caption_hash: str
    """SHA-256 over the token ids of all captions, whatever their order."""
    captions: Annotated[int, Range(1)]
    """Number of captions."""
    layers: tuple[int, ...]
    """Blocks whose keys were measured, ascending."""


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoments:
    """`C_l` of several layers with where they come from."""

    moments: dict[int, Float64[np.ndarray, "key key"]]
    """Layer -> E[k k^T]."""
    count: int
    """Tokens averaged over."""
    provenance: MomentProvenance

    @functools.cached_property
    def _factored(self) -> dict[int, Moment]:
        return {layer: Moment(matrix) for layer, matrix in self.moments.items()}

    def moment(self, layer: int) -> Moment:
        """`C_l` for the solvers; the same object, and thus the same factor, at every call."""
        return self._factored[layer]

    def lent_to(self, model_hash: str) -> SecondMoments:
        """The same moments, factors included, to stand for those of another model.

        For a model that was edited, of which no moments were measured.
        """
        about = dataclasses.replace(self.provenance, model_hash=model_hash)
        lent = dataclasses.replace(self, provenance=about)
        vars(lent)["_factored"] = self._factored
        return lent


class Progress(NamedTuple):
    """Sums after a whole number of chunks: enough to go on later with an identical result."""

    batches: int
    """Batches done."""
    total: int
    """Batches in all."""
    count: int
    """Tokens summed over."""
    sums: dict[int, Float64[np.ndarray, "key key"]]
    """Layer -> sum of k k^T."""
    provenance: MomentProvenance
    batch: int
    """Captions per batch."""


def accumulate(
    model: ClipTextModel,
    params: dict[str, Any],
    ids: Int[np.ndarray, "caption token"],
    layers: Sequence[int],
    *,
    batch: int = 256,
    chunk: int = 16,
    mesh: Mesh | None = None,
    start: Progress | None = None,
) -> Iterator[Progress]:
    """Sum k k^T over captions; yields after every `chunk` batches, the last time when done.

    Each device sums its own share in the model's precision (float32, matrix products at the
    highest precision); at the end of a chunk one `psum` adds the devices, and the host adds the
    chunk to float64 sums. Yielded sums are never changed afterwards.

    Args:
        model: the text encoder; runs in float32 (float64 where its parameters are).
        params: its parameters.
        ids: token ids of the captions, padded to one width.
        layers: blocks whose keys are wanted.
        batch: captions per batch, over all devices; rounded up to a multiple of the devices.
        chunk: batches per yield.
        mesh: devices (default: all).
        start: what an earlier, interrupted call yielded last; the end result is the same to the
            bit as without interruption on the same number of devices.

    Raises:
        UserError: no captions, a bad layer, `start` of other captions, model or settings, or sums
            that are not finite.
    """
    layers = tuple(sorted({int(layer) for layer in layers}))
    depth = model.config.num_hidden_layers
    if not layers or layers[0] < 0 or layers[-1] >= depth:
        raise UserError(f"layers are {layers}; the text encoder has blocks 0 to {depth - 1}")
    if not len(ids):
        raise UserError("moments.captions holds no caption; give at least one")
    mesh = make_mesh() if mesh is None else mesh
    model = exact(model, params)
    batch = padded_size(batch, mesh.size)
    lengths = np.asarray(end_positions(jnp.asarray(ids), model.config.eos_token_id)) + 1
    ids, lengths = canonical(ids, lengths, model.config.max_position_embeddings)
    batches = make_batches(ids, lengths, batch, mesh.size)
    provenance = MomentProvenance(params_hash(params), _hash_rows(ids), len(ids), layers)
    if start is None:
        size = model.config.intermediate_size
        zeros = {layer: np.zeros((size, size)) for layer in layers}
        start = Progress(0, len(batches), 0, zeros, provenance, batch)
    _check_same(start, provenance, batch)

    device_params = place(params, replicated(mesh))
    done, count, sums = start.batches, start.count, start.sums
    while done < len(batches):
        local = _zeros(model, layers, mesh)
        upto = min(done + chunk, len(batches))
        for part in batches[done:upto]:
            local = _add(model, layers, mesh, device_params, local, *place(part, sharded(mesh)))
            count += int(part.counts.sum())
        totals = jax.device_get(_total(mesh, local))
        for layer, total in zip(layers, totals, strict=True):
            require_finite(total, f"second moments of block {layer}", "key")
        sums = {
            layer: sums[layer] + np.triu(total) + np.triu(total, 1).T
            for layer, total in zip(layers, totals, strict=True)
        }
        done = upto
        yield Progress(done, len(batches), count, sums, provenance, batch)


def finish(progress: Progress) -> SecondMoments:
    """Turn the last `Progress` into moments. Raises `ValueError` if it is not the last."""
    if progress.batches != progress.total:
        raise ValueError(f"{progress.batches} of {progress.total} batches are done")
    moments = {layer: total / progress.count for layer, total in progress.sums.items()}
    return SecondMoments(moments, progress.count, progress.provenance)


def exact(model: ClipTextModel, params: dict[str, Any]) -> ClipTextModel:
    """`model` computing in float32, or in float64 where its parameters are float64."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(params)]
    return model.clone(dtype=jnp.result_type(jnp.float32, *dtypes))


def write_moments(path: Path, moments: SecondMoments) -> None:
    """Write `moments` to one safetensors file with a checksum, atomically."""
    arrays = {str(layer): matrix for layer, matrix in moments.moments.items()}
    about = dataclasses.asdict(moments.provenance) | {"count": moments.count}
    checksums.write_tensors(path, arrays, {_ABOUT: json.dumps(about, sort_keys=True)})


def read_moments(path: Path) -> SecondMoments:
    """Read what `write_moments` wrote.

    A file of version 0.1 has no checksum: that is said in a warning, and it is read if every
    matrix is symmetric to the bit.

    Raises:
        UserError: it is no such file, or a byte of it was changed.
    """
    found = checksums.read_tensors(path, "second-moment file", _REMEDY)
    if not found.sealed:
        logging.warning("%s: of version 0.1, has no checksum; %s to have one", path, _REMEDY)
    try:
        if set(found.about) != {_ABOUT}:
            raise ValueError(f"its metadata are {sorted(found.about)}")
        about = loads(found.about[_ABOUT])
        count = typed_values.convert(about.pop("count"), Annotated[int, Range(1)], "count")
        provenance = typed_values.section(about, MomentProvenance, "provenance")
        moments = {int(name): matrix for name, matrix in found.arrays.items()}
        if tuple(sorted(moments)) != provenance.layers or not moments:
            raise ValueError(f"it holds layers {sorted(moments)}, but says {provenance.layers}")
        for layer, matrix in moments.items():
            _require_moment(layer, matrix)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: no second-moment file ({error}); {_REMEDY}") from error
    return SecondMoments(dict(sorted(moments.items())), count, provenance)


def _require_moment(layer: int, matrix: np.ndarray) -> None:
    """ValueError for what cannot be E[k k^T]. Most flipped bits break the symmetry."""
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if matrix.dtype != np.float64 or not square:
        raise ValueError(f"layer {layer} is {matrix.dtype} of shape {matrix.shape}")
    if not (
        np.isfinite(matrix).all() and (matrix == matrix.T).all() and (matrix.diagonal() >= 0).all()
    ):
        raise ValueError(f"layer {layer} is no second moment: not finite, symmetric and positive")


def _hash_rows(ids: Int[np.ndarray, "caption token"]) -> str:
    """Hash of captions in canonical form."""
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()


def _check_same(start: Progress, provenance: MomentProvenance, batch: int) -> None:
    """Refuse to go on with sums of something else."""
    old, new = dataclasses.asdict(start.provenance), dataclasses.asdict(provenance)
    for name in new:
        if old[name] != new[name]:
            raise UserError(
                f"saved second moments have {name} {old[name]!r}, this run has {new[name]!r}; "
                "use the old settings or another workdir"
            )
    if start.batch != batch:
        raise UserError(
            f"saved second moments have batch {start.batch}, this run has {batch}; "
            "use the old settings or another workdir"
        )


def _zeros(model: ClipTextModel, layers: tuple[int, ...], mesh: Mesh) -> tuple[Array, ...]:
    """Each device's own sums: a leading axis over devices."""
    size = model.config.intermediate_size
    shape = (mesh.size, size, size)
    return tuple(jnp.zeros(shape, model.dtype, device=sharded(mesh)) for _ in layers)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _add(
    model: ClipTextModel,
    layers: tuple[int, ...],
    mesh: Mesh,
    params: dict[str, Any],
    sums: tuple[Float[Array, "device key key"], ...],
    ids: Int[Array, "caption token"],
    places: Int[Array, " slot"],
    counts: Int[Array, " slot"],
) -> tuple[Float[Array, "device key key"], ...]:
    """Add one batch to every device's own sums, above the diagonal; no communication."""
    whole = PartitionSpec()

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(whole, SPLIT, SPLIT, SPLIT, SPLIT), out_specs=SPLIT
    )
    def local(
        params: dict[str, Any], sums: tuple[Array, ...], ids: Array, places: Array, counts: Array
    ) -> tuple[Array, ...]:
        out: Any = model.apply({"params": params}, ids)
        weights = jnp.sqrt(counts.astype(model.dtype))[:, None]
        keys = [out.keys[layer].reshape(ids.size, -1)[places] * weights for layer in layers]
        return tuple(
            total + _upper_product(rows)[None] for total, rows in zip(sums, keys, strict=True)
        )

    with jax.default_matmul_precision("highest"):
        return local(params, sums, ids, places, counts)


def _upper_product(rows: Float[Array, "slot key"]) -> Float[Array, "key key"]:
    """`rows^T rows` on and above the diagonal; below it are zeros and parts of it."""
    size = rows.shape[1]
    edges = [size * band // BANDS for band in range(BANDS + 1)]
    bands = [
        jnp.pad(rows[:, low:high].T @ rows[:, low:], ((0, 0), (low, 0)))
        for low, high in itertools.pairwise(edges)
        if low < high
    ]
    return jnp.concatenate(bands)


@functools.partial(jax.jit, static_argnums=0)
def _total(
    mesh: Mesh, sums: tuple[Float[Array, "device key key"], ...]
) -> tuple[Float[Array, "key key"], ...]:
    """The one collective: add the devices' sums."""

    def add(sums: tuple[Array, ...]) -> tuple[Array, ...]:
        return jax.lax.psum(tuple(total[0] for total in sums), AXES)

    whole = PartitionSpec()
    return jax.shard_map(add, mesh=mesh, in_specs=(SPLIT,), out_specs=whole)(sums)
