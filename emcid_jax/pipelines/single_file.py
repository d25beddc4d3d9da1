"""A single-file Stable Diffusion checkpoint as a diffusers folder, converted once.

All that follows (loading, exporting, hashing) then knows one layout only. Keys and shapes are
checked against the model's config before anything is written, tensors are copied one at a time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from emcid_jax.models.image.unet import UNet2DCondition, UNetConfig
from emcid_jax.models.image.vae import AutoencoderKL, VaeConfig
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel
from emcid_jax.models.text.encoder import SECOND
from emcid_jax.models.text.tokenizer import Tokenizer, save_tokenizer
from emcid_jax.models.weights import params
from emcid_jax.models.weights.safetensors_files import FLOATS, Header, read_header, read_tensor
from emcid_jax.pipelines import ldm_keys
from emcid_jax.pipelines.diffusers_layout import write_configs, write_index, write_json
from emcid_jax.pipelines.families import Family
from emcid_jax.runtime.errors import UserError
from emcid_jax.storage.files import file_hash, replacing, replacing_folder
from emcid_jax.storage.locks import held

FORMAT = 2
"""Part of a conversion's name: raise it whenever the same file is converted differently."""
SOURCE = "source.json"
"""In a converted folder: the SHA-256 (hex) of the file that it was made from."""

Configs = Mapping[str, Mapping[str, Any]]
Names = Mapping[str, Mapping[str, ldm_keys.Shape]]
"""Part -> name in the diffusers folder -> shape on disk."""


def convert(
    file: Path,
    header: Header,
    version: ldm_keys.Version,
    family: Family,
    configs: Configs,
    tokenizers: Mapping[str, Tokenizer],
    cache: Path,
) -> Path:
    """The diffusers folder in `cache` that holds the model of `file`; made if there is none yet.

    Args:
        file: a Stable Diffusion checkpoint in LDM's key names.
        header: of that file.
        version: see `ldm_keys.version_of`.
        family: of that version.
        configs: content of the diffusers folder's JSON files, see `default_configs`.
        tokenizers: go into the folder, by the encoder's part.
        cache: folder of converted models. Stored types stay as they are.

    Raises:
        UserError: keys, shapes or values that are not those of the model; names file and key.

    The file's content decides which conversion is its own, not its name, size and time: a file
    that was replaced may agree in all three.
    """
    places = _places(file, header, configs, version)
    digest = file_hash(file)
    folder = cache / f"{file.stem}-{_digest(digest, configs, tokenizers)[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with held(cache / f".{folder.name}.lock", f"the cache of models is {str(cache)!r}", wait=True):
        if folder.exists():
            return folder
        with replacing_folder(folder) as staging:
            _write_parts(file, header, places, family, staging)
            write_configs(staging, configs, family)
            for part in family.encoders:
                save_tokenizer(tokenizers[part.name], staging / part.tokenizer)
            write_json(staging / SOURCE, {"sha256": digest})
            write_index(staging, configs["scheduler"]["_class_name"], family)
            if file_hash(file) != digest:
                raise UserError(f"{file}: was changed while it was converted; run again")
    return folder


def source_hash(folder: Path) -> str:
    """SHA-256 (hex) of the file that `folder`, which `convert` gave, was made from."""
    return json.loads((folder / SOURCE).read_text("utf8"))["sha256"]


def names_of(configs: Configs) -> Names:
    """Names and shapes of all tensors in a diffusers folder, by part.

    Raises:
        UserError: a config asks for something unsupported, or text encoder and UNet do not fit.
    """
    texts = {
        part: ClipTextModel(ClipTextConfig.from_dict(config), projection=part == SECOND)
        for part, config in configs.items()
        if part.startswith("text_encoder")
    }
    unet = UNet2DCondition(UNetConfig.from_dict(configs["unet"]))
    vae = AutoencoderKL(VaeConfig.from_dict(configs["vae"]))

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    # Parameters have the same shapes whatever the size of the image.
    side = 2 ** len(unet.config.block_out_channels)
    denoised = [
        shape(1, side, side, unet.config.in_channels),
        shape(1, dtype=jnp.int32),
        shape(1, 1, unet.config.cross_attention_dim[0]),
    ]
    if unet.config.addition_embed_type and SECOND in texts:
        pooled = texts[SECOND].config.projection_dim
        try:
            denoised += [shape(1, pooled), shape(1, unet.config.size_count(pooled))]
        except ValueError as error:
            raise UserError(f"unet/config.json: {error}; take both from one model") from error
    trees = {
        part: params.abstract_params(text, shape(1, 1, dtype=jnp.int32))
        for part, text in texts.items()
    }
    trees["unet"] = params.abstract_params(unet, *denoised)
    pixels = 8 * vae.config.downscale
    trees["vae"] = params.abstract_params(vae, shape(1, pixels, pixels, vae.config.in_channels))
    return {part: _disk_shapes(tree) for part, tree in trees.items()}


def _disk_shapes(tree: params.Params) -> dict[str, ldm_keys.Shape]:
    shapes = {}
    for path, leaf in cast(dict[tuple[str, ...], Any], flatten_dict(tree)).items():
        kernel = path[-1] == "kernel"
        shape = (*leaf.shape[-1:-3:-1], *leaf.shape[:-2]) if kernel else leaf.shape
        shapes[params.hf_name(path)] = tuple(shape)
    return shapes


def read_refiner(file: Path) -> dict[str, np.ndarray]:
    """Tensors of the text encoder of SDXL's refiner, under the names of a diffusers folder.

    Raises:
        UserError: the file is damaged, no refiner, or lacks a tensor.
    """
    header = read_header(file)
    if (version := ldm_keys.version_of(header.shapes, file)) != "refiner":
        raise UserError(f"{file}: is {ldm_keys.NAMES[version]}, not its refiner")
    blocks = sum(key.endswith(".mlp.c_proj.bias") for key in header.shapes)
    # The names depend on the number of blocks alone.
    small = ClipTextConfig(
        hidden_size=1, intermediate_size=1, num_attention_heads=1, num_hidden_layers=blocks
    )
    model = ClipTextModel(small, projection=True)
    tree = params.abstract_params(model, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    arrays = {}
    for name in _disk_shapes(tree):
        place = ldm_keys.locate_text(name, SECOND, version, header.shapes)
        if place.key not in header.shapes:
            raise UserError(f"{file}: {place.key} is missing; download it again")
        arrays[name] = _taken(read_tensor(file, header, place.key), place)
    return arrays


def _taken(array: np.ndarray, place: ldm_keys.Place) -> np.ndarray:
    """A tensor of the folder, out of what is stored at its place."""
    array = array if place.third is None else np.split(array, 3)[place.third]
    return array.T if place.transposed else array


class _Source(NamedTuple):
    """A tensor to write: where it is, and its shape there and here."""

    place: ldm_keys.Place
    shape: ldm_keys.Shape


def _places(
    file: Path, header: Header, configs: Configs, version: ldm_keys.Version
) -> dict[str, dict[str, _Source]]:
    """Every tensor of the folder, found in the file; UserError lists all that is wrong."""
    unet, vae = UNetConfig.from_dict(configs["unet"]), VaeConfig.from_dict(configs["vae"])
    locate: dict[str, Callable[[str], ldm_keys.Place]] = {
        "unet": lambda name: ldm_keys.locate_unet(name, unet),
        "vae": lambda name: ldm_keys.locate_vae(name, vae),
    }
    blocks = {}
    for part in ldm_keys.TEXT[version]:
        locate[part] = functools.partial(
            ldm_keys.locate_text, part=part, version=version, keys=header.shapes
        )
        blocks[part] = ClipTextConfig.from_dict(configs[part]).num_hidden_layers
    found = {
        part: {name: _Source(locate[part](name), shape) for name, shape in names.items()}
        for part, names in names_of(configs).items()
    }
    sources = [source for part in found.values() for source in part.values()]
    needed = {key for key in header.shapes if ldm_keys.is_needed(key, version, blocks)}
    taken = {source.place.key for source in sources}
    problems = [f"{key} is missing" for key in sorted(taken - needed)]
    problems += [f"{key} is unknown" for key in sorted(needed - taken)]
    for place, shape in sources:
        stored = header.shapes.get(place.key)
        wanted = shape if place.third is None else (3 * shape[0], *shape[1:])
        wanted = wanted[::-1] if place.transposed else wanted
        # Linear layers of early files are 1x1 convolutions.
        if stored is not None and stored not in (wanted, (*wanted, 1, 1), (*wanted, 1)):
            problems.append(f"{place.key} has shape {stored}, expected {wanted}")
        elif stored is not None and header.kinds[place.key] not in FLOATS:
            kind = header.kinds[place.key]
            problems.append(f"{place.key} has type {kind}, expected {tuple(FLOATS)}")
    if problems:
        listed = "; ".join(list(dict.fromkeys(problems))[:10])
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(f"{file}: not the weights of {ldm_keys.NAMES[version]}: {listed}{more}")
    return found


def _write_parts(
    file: Path,
    header: Header,
    places: Mapping[str, Mapping[str, _Source]],
    family: Family,
    folder: Path,
) -> None:
    try:
        for part, sources in places.items():
            _write_tensors(folder / part / family.weight_files[part], file, header, sources)
    except OSError as error:
        raise UserError(f"{file}: not convertible: {error}") from error


def _write_tensors(path: Path, file: Path, header: Header, sources: Mapping[str, _Source]) -> None:
    """A safetensors file, written tensor by tensor: the library's writer wants all at once."""
    entries, end = {}, 0
    for name, (place, shape) in sorted(sources.items()):
        kind, start = header.kinds[place.key], end
        end += math.prod(shape) * np.dtype(FLOATS[kind]).itemsize
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in entries:
            place, shape = sources[name]
            array = _taken(read_tensor(file, header, place.key), place)
            if not np.isfinite(array.astype(np.float32)).all():
                raise UserError(f"{file}: {place.key} holds NaN or infinity; download it again")
            stream.write(np.ascontiguousarray(array.reshape(shape)).tobytes())


def _digest(file: str, configs: Configs, tokenizers: Mapping[str, Tokenizer]) -> str:
    """What a conversion depends on; `file` is the hash of the file's content."""
    about: list[Any] = [FORMAT, file, {part: dict(config) for part, config in configs.items()}]
    for tokenizer in tokenizers.values():
        about += [tokenizer.backend_tokenizer.to_str(), tokenizer.model_max_length]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
