"""Where a model comes from: a diffusers folder, a Hub id, or a single-file checkpoint.

`find_model` turns all three into a folder in diffusers' layout.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emcid_jax.models.text.clip_vocabulary import clip_tokenizer
from emcid_jax.models.text.tokenizer import Tokenizer, load_tokenizer
from emcid_jax.models.weights.safetensors_files import read_header
from emcid_jax.pipelines import ldm_keys, single_file
from emcid_jax.pipelines.families import FAMILIES, SD, SDXL, EncoderPart, read_config, read_family
from emcid_jax.pipelines.published_configs import default_configs
from emcid_jax.runtime.errors import UserError, first_line
from emcid_jax.storage.text_files import read_json_object
from emcid_jax.storage.user_cache import cache_folder

PARTS = tuple(dict.fromkeys(part for family in FAMILIES.values() for part in family.weight_files))
"""Folders that hold weights, of any family."""
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
# Owner and name, as the Hub allows them.
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def find_model(
    path: str,
    *,
    revision: str = "",
    variant: str = "",
    prediction: str = "",
    cache: Path | None = None,
) -> Path:
    """The folder in diffusers' layout of the model that `path` names.

    Args:
        path: a folder; a `.safetensors` file with all parts in LDM's key names; or a Hub id
            `owner/name`, looked for in the Hub's cache and then on the Hub.
        revision: branch, tag or commit of a Hub id; empty: `main`.
        variant: which weight files to fetch, e.g. `fp16` for `*.fp16.safetensors`.
        prediction: `epsilon` or `v_prediction`, for single files, which rarely say; empty: what
            the file says, else `epsilon` for Stable Diffusion 1 and XL.
        cache: where converted single files go; default: the user's cache folder.

    Raises:
        UserError: there is no such model, it is pickled, or it is damaged or of another kind.
    """
    place = Path(path).expanduser()
    if prediction and place.suffix != ".safetensors":
        raise UserError(
            f"config.model.prediction is {prediction!r}, but {path} says itself what it predicts "
            "(scheduler_config.json); leave it empty"
        )
    if path and place.is_dir():
        _require_safetensors(place)
        return place
    if place.suffix in PICKLES:
        raise UserError(f"{path}: pickled weights are not read; {_conversion(path, True)}")
    if place.is_file() or place.suffix == ".safetensors":
        return _convert(place, prediction, cache or _cache_folder())
    if _HUB_ID.fullmatch(path):
        return _from_hub(path, revision or None, variant)
    raise UserError(
        f"config.model.path is {path!r}; give `sprites`, a diffusers folder, a .safetensors file "
        "or a Hub id such as owner/name"
    )


def is_hub_id(path: str) -> bool:
    """Whether `path` names a model of the Hub: `owner/name`, and nothing is there on this disk."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists()


def _require_safetensors(folder: Path) -> None:
    """UserError if a part has pickled weights and no others."""
    for part in PARTS:
        if any((folder / part).glob("*.safetensors")):
            continue
        pickles = sorted(file for file in (folder / part).glob("*") if file.suffix in PICKLES)
        if pickles:
            raise UserError(
                f"{pickles[0]}: pickled weights are not read; {_conversion(str(folder), False)}"
            )


def _conversion(path: str, single: bool) -> str:
    read = "from_single_file" if single else "from_pretrained"
    return (
        "convert them where diffusers is installed: python -c 'from diffusers import "
        f'StableDiffusionPipeline as P; P.{read}("{path}").save_pretrained("converted")\''
    )


def _from_hub(name: str, revision: str | None, variant: str) -> Path:
    """The snapshot of a Hub model; what the cache has is not fetched again."""
    weights = f"*{variant}*.safetensors" if variant else "*.safetensors"
    files = [f"{part}/{file}" for part in PARTS for file in (weights, "*.json")]
    patterns = [
        "model_index.json",
        "README.md",
        "LICENSE*",
        "tokenizer/*",
        "tokenizer_2/*",
        "scheduler/*.json",
        *files,
    ]
    # Without a variant the others would be fetched too: twice the bytes.
    ignored = [] if variant else ["*.fp16*", "*.bf16*", "*.non_ema*"]
    folder = _snapshot(name, revision, patterns, ignored)
    at = f" at revision {revision}" if revision else ""
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"config.model.path is {name!r}, but the Hub's model{at} has no model_index.json, so "
            "it is no diffusers folder; give another id, or its single file as a local path"
        )
    index = read_json_object(folder / "model_index.json", "the model's index")
    for part in read_family(index, folder).weight_files:
        if not any((folder / part).glob(weights)):
            raise UserError(
                f"{name}{at}: {part} has no {weights}; choose another variant, or "
                f"{_conversion(name, False)}"
            )
    return folder


def _snapshot(name: str, revision: str | None, patterns: list[str], ignored: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # slow imports, and only for Hub models
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
        )
    except GatedRepoError as error:
        raise UserError(f"{name}: gated; accept its licence on the Hub, set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name}: no revision {revision!r} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such folder here and no such model on the Hub (for a private one set "
            "HF_TOKEN)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name}{at}: no such folder here, not wholly in the Hub's cache, and the Hub is not "
            "reached; download it first or give a folder"
        ) from error
    except Exception as error:  # names, disk, proxies: the errors have no common base
        raise UserError(f"{name}{at}: not available from the Hub: {first_line(error)}") from error
    return Path(found)


def _convert(file: Path, prediction: str, cache: Path) -> Path:
    """The diffusers folder of a single file; configs and tokenizer beside it come first."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: give a diffusers folder or a .safetensors file")
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    header = read_header(file)
    version = ldm_keys.version_of(header.shapes, file)
    if version == "refiner":
        raise UserError(
            f"{file}: is {ldm_keys.NAMES[version]}, which only goes over pictures of the base "
            "model; give the base model's file"
        )
    family = SDXL if version == "xl" else SD
    beside = {
        part: read_config(part, path, f"{part} beside {file.name}")
        for part, name in family.config_files.items()
        if (path := file.parent / part / name).is_file()
    }
    if version == 2 and not prediction and "scheduler" not in beside:
        raise UserError(
            f"{file}: Stable Diffusion 2 files do not say what their UNet predicts; set "
            "config.model.prediction to epsilon (512-pixel models) or v_prediction (768-pixel)"
        )
    # Fine-tuned XL models that predict velocity have these empty tensors; ComfyUI reads them too.
    velocity = version == "xl" and "v_pred" in header.shapes
    unsaid = "v_prediction" if velocity else "epsilon"
    said = beside.get("scheduler", {}).get("prediction_type", unsaid)
    configs: dict[str, Mapping[str, Any]] = {
        **default_configs(version, prediction or said),
        **beside,
    }
    if prediction:
        configs["scheduler"] = {**configs["scheduler"], "prediction_type": prediction}
    if velocity and "ztsnr" in header.shapes and "scheduler" not in beside:
        configs["scheduler"] = {**configs["scheduler"], "rescale_betas_zero_snr": True}
    tokenizers = {part.name: _tokenizer(file.parent, part, version) for part in family.encoders}
    logging.info("%s: converting to a diffusers folder in %s (once)", file, cache)
    return single_file.convert(file, header, version, family, configs, tokenizers, cache)


def _tokenizer(beside: Path, part: EncoderPart, version: ldm_keys.Version) -> Tokenizer:
    """The one beside the file, or CLIP's; padding as the encoder was trained: OpenCLIP's with `!`.

    For Stable Diffusion XL's two encoders one tokenizer may lie there.
    """
    folders = [beside / part.tokenizer, beside / "tokenizer"]
    there = next((folder for folder in folders if folder.is_dir()), None)
    tokenizer: Any = clip_tokenizer() if there is None else load_tokenizer(there)
    open_clip = ldm_keys.TEXT[version][part.name].endswith("model.")
    tokenizer.pad_token = "!" if open_clip else tokenizer.eos_token
    return tokenizer


def _cache_folder() -> Path:
    return cache_folder("models")
