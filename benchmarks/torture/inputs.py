"""Mutated inputs: each is read as a task reads it before work, and held against another reader."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.torture import oracles, world
from benchmarks.torture.mutations import altered, mangled, safetensors_altered

PROMPTS = ("a photo of dog", "an image of great white shark", "painting cat", "zebra quiz")
SEAL = re.compile(rb'"checksum": ?"([0-9a-f]{64})"')


class Kind(NamedTuple):
    """A kind of input."""

    name: str
    share: int
    """Out of 10,000 inputs."""
    attempt: Callable[[random.Random, Path, Path], str]
    """Takes chance, the world, and an empty folder; gives what is wrong, or nothing. What it raises
    is for the door of main."""


def manifest(rng: random.Random, place: Path, folder: Path) -> str:
    """JSON, YAML and CSV, changed byte by byte or value by value."""
    import yaml

    from emcid_jax.concepts.readers.manifests import read_requests

    tree: Any = {"requests": list(world.REQUESTS), "defaults": {"seed": 7}}
    style = rng.choice(("json", "yaml", "csv", "names"))
    if style == "names":
        tree = [request["source"] for request in world.REQUESTS]
    if style == "csv":
        rows = [f"{r['source']},{r['dest']},{r.get('seed', 0)}" for r in world.REQUESTS]
        raw = "\n".join(["source,dest,seed", *rows]).encode()
    else:
        if rng.random() < 0.5:
            tree = altered(rng, tree)
        raw = _dumped(tree)
        if style == "yaml":
            with contextlib.suppress(RecursionError):  # PyYAML's writer, at great depth.
                raw = yaml.dump(tree).encode("utf-8", "replace")
    if style == "csv" or rng.random() < 0.6:
        raw = mangled(rng, raw)
    file = folder / f"requests.{rng.choice((style, 'txt'))}"
    file.write_bytes(raw)
    return oracles.requests(raw, read_requests(file))


def captions(rng: random.Random, place: Path, folder: Path) -> str:
    """Captions in text, JSON lines and a JSON list; names to keep."""
    from emcid_jax.concepts.readers.texts import read_names
    from emcid_jax.editing.moments.captions import read_captions

    plain = (place / "captions.txt").read_text().splitlines()[:12]
    style = rng.choice(("text", "jsonl", "json", "names"))
    raw = "\n".join(plain).encode()
    if style == "jsonl":
        raw = b"\n".join(_dumped({"caption": line}) for line in plain)
    elif style == "json":
        raw = _dumped(plain)
    raw = mangled(rng, raw)
    file = folder / f"captions.{rng.choice((style, 'txt', 'jsonl'))}"
    file.write_bytes(raw)
    if style == "names":
        return oracles.texts(raw, read_names(file, "config.keep_path"), ("name",))
    return oracles.texts(raw, read_captions(str(file), 10_000, 1), ("caption", "prompt"))


def weights(rng: random.Random, place: Path, folder: Path) -> str:
    """The text encoder's safetensors file, header by header, read as parameters."""
    import jax
    from flax.traverse_util import unflatten_dict

    from emcid_jax.models.text.clip import disk_name
    from emcid_jax.models.weights.params import read_params, to_hf

    source = place / "model" / "text_encoder" / "model.safetensors"
    file = folder / "model.safetensors"
    file.write_bytes(safetensors_altered(rng, source.read_bytes()))
    shapes = json.loads((place / "shapes.json").read_text())
    tree = {tuple(p): jax.ShapeDtypeStruct(tuple(s), np.float32) for p, s in shapes}
    return oracles.tensors(file, to_hf(read_params(file, unflatten_dict(tree), disk_name)))


def bank(rng: random.Random, place: Path, folder: Path) -> str:
    """A concept bank's list and records, damaged, or made by hand with a checksum that fits."""
    from emcid_jax.editing.bank.concepts import open_bank
    from emcid_jax.tasks.bank import describe, table

    mine = folder / "bank"
    shutil.copytree(place / "starts" / "job" / "bank", mine)
    file = rng.choice(sorted(path for path in mine.iterdir() if path.name[0] != "."))
    before = file.read_bytes()
    after = _by_hand(rng, before, file.suffix == ".json")
    file.write_bytes(after)
    found = open_bank(mine)
    table(found)
    for concept in found.concepts:
        describe(found, concept)
    said = json.loads((mine / "concepts.json").read_bytes())["concepts"]
    if len(said) != len(found.concepts):
        return f"{len(said)} concepts, {len(found.concepts)} were read"
    names = sorted((e["memory"], e["strength"], e["request"]["source"]) for e in said)
    read = sorted((c.memory, c.strength, c.request.source) for c in found.concepts)
    if not all(map(oracles.same, names, read)):
        return f"the list says {names}, read as {read}"
    for concept in found.concepts:
        memory = found.records[concept.memory].memory._asdict()
        problem = oracles.tensors(mine / f"{concept.memory}.safetensors", memory)
        if problem:
            return problem
    return ""


def edit(rng: random.Random, place: Path, folder: Path) -> str:
    """An edit file: shown, and added to the weights."""
    from emcid_jax.editing.export import stored_weights
    from emcid_jax.editing.export.edit_file import read_edit
    from emcid_jax.tasks.edit_file import summary

    file = folder / "edit.safetensors"
    file.write_bytes(_by_hand(rng, (place / "starts/job/edit.safetensors").read_bytes()))
    content, ledger = read_edit(file)
    summary({"text_encoder": content.layers}, ledger, file.stat().st_size)
    base = stored_weights.read_weights(place / "model").arrays
    edited = stored_weights.add_deltas(base, content)
    problem = oracles.tensors(file, content.arrays)
    for name in () if problem else edited:
        arrays = {key.rsplit(".", 1)[-1]: a for key, a in content.arrays.items() if name in key}
        wide = {key: array.astype(np.float64) for key, array in arrays.items()}
        delta = wide["up"] @ wide["down"] if "up" in wide else wide.get("weight", 0.0)
        if not np.allclose(edited[name], base[name] + delta, atol=1e-6):
            return f"{name} is not the base and what the file says"
    return problem


def moments(rng: random.Random, place: Path, folder: Path) -> str:
    """A file of second moments."""
    from emcid_jax.editing.moments.second_moment import read_moments

    file = folder / "second_moments.safetensors"
    file.write_bytes(
        _by_hand(rng, next((place / "starts/job/moments").rglob("*.safetensors")).read_bytes())
    )
    found = read_moments(file)
    return oracles.tensors(file, {str(layer): m for layer, m in found.moments.items()})


def model_config(rng: random.Random, place: Path, folder: Path) -> str:
    """A model's JSON files: parsed, put together, and its parts' weights looked at."""
    from emcid_jax.pipelines.families import SD
    from emcid_jax.pipelines.pipeline import load_pipeline

    model = _linked(place / "model", folder / "model")
    part = rng.choice((*SD.config_files, "index"))
    file = model / (
        f"{part}/{SD.config_files[part]}" if part in SD.config_files else "model_index.json"
    )
    before = json.loads(file.read_bytes())
    raw = _dumped(altered(rng, before))
    if rng.random() < 0.2:
        raw = mangled(rng, raw)
    file.unlink()
    file.write_bytes(raw)
    pipeline = load_pipeline(model)
    said = json.loads(raw)
    configs = {
        "text_encoder": pipeline.encoder.model.config,
        "unet": pipeline.unet.config,
        "vae": pipeline.vae.config,
    }
    if part not in configs:
        return "" if part == "index" else _schedule_differs(said, pipeline)
    parsed = dataclasses.asdict(configs[part])
    strange = [n for n, v in parsed.items() if isinstance(v, float) and not math.isfinite(v)]
    if strange:
        return f"{strange[0]} is {parsed[strange[0]]!r}"
    known = {name: value for name, value in said.items() if value is not None}
    return oracles.fields(known, parsed)


def tokenizer(rng: random.Random, place: Path, folder: Path) -> str:
    """A tokenizer's files; what it makes of prompts is byte pair encoding done anew."""
    from emcid_jax.models.text.tokenizer import load_tokenizer, tokenize
    from emcid_jax.pipelines.families import SD
    from emcid_jax.pipelines.pipeline import make_pipeline

    mine = folder / "tokenizer"
    shutil.copytree(place / "model" / "tokenizer", mine)
    file = rng.choice(sorted(mine.iterdir()))
    raw = file.read_bytes()
    if file.suffix == ".json" and rng.random() < 0.6:
        raw = _dumped(altered(rng, json.loads(raw)))
    else:
        raw = mangled(rng, raw)
    file.write_bytes(raw)
    read = load_tokenizer(mine)
    model = place / "model"
    files = {part: model / part / name for part, name in SD.config_files.items()}
    configs = {part: json.loads(path.read_bytes()) for part, path in files.items()}
    make_pipeline(configs, {}, read, model)  # Its parts must fit together.
    ids = tokenize(read, PROMPTS)
    roles = [oracles.special_tokens(mine, f"{role}_token") for role in ("bos", "eos", "pad")]
    for row, wanted in zip(ids.tolist(), oracles.byte_pairs(mine, PROMPTS), strict=True):
        wanted = wanted[: len(row) - 2]
        end = len(wanted) + 1
        specials = [{row[0]}, {row[end]}, set(row[end + 1 :])]
        if row[1:end] != wanted or any(not a <= b for a, b in zip(specials, roles, strict=True)):
            return f"tokens {row}, by its own files {wanted} between {roles}"
    return ""


def picture(rng: random.Random, place: Path, folder: Path) -> str:
    """A training image: what passes the check is what Pillow decodes."""
    from PIL import Image

    from emcid_jax.config import StageOneConfig
    from emcid_jax.editing.stage_one import training_images

    kind = rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP"))
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (20, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    raw = buffer.getvalue()
    file = folder / f"image.{rng.choice((kind.lower(), 'png'))}"
    file.write_bytes(mangled(rng, raw) if rng.random() < 0.8 else raw[: rng.randrange(len(raw))])
    config = StageOneConfig(image_source="files", samples_per_prompt=1)
    training_images.check_files([[str(file)]], [1], ["request"], config)
    found = training_images.load_image(file, (16, 16))
    with Image.open(file) as image:
        image.load()
        width = min(image.size)
    return "" if found.shape == (16, 16, 3) and width else "not the picture"


def _by_hand(rng: random.Random, raw: bytes, is_json: bool = False) -> bytes:
    """Damaged; or altered and given a checksum that fits, as somebody might by hand."""
    import hashlib

    if rng.random() < 0.4:
        return mangled(rng, raw)
    if is_json:
        changed = _dumped(altered(rng, json.loads(raw)))
    else:
        changed = safetensors_altered(rng, _inner_altered(rng, raw) if rng.random() < 0.6 else raw)
    found = SEAL.search(changed)
    if found is None:
        return changed
    blank = changed[: found.start(1)] + b"0" * 64 + changed[found.end(1) :]
    seal = hashlib.sha256(blank).hexdigest().encode()
    return changed[: found.start(1)] + seal + changed[found.end(1) :]


def _inner_altered(rng: random.Random, raw: bytes) -> bytes:
    """One of the JSON texts in a file's metadata altered."""
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    metadata = entries.get("__metadata__", {})
    inner = [name for name, text in metadata.items() if text[:1] in ("{", "[")]
    if inner:
        name = rng.choice(inner)
        metadata[name] = json.dumps(altered(rng, json.loads(metadata[name])))
    head = json.dumps(entries).encode("utf-8", "surrogatepass")
    return len(head).to_bytes(8, "little") + head + raw[8 + length :]


def _schedule_differs(said: dict[str, Any], pipeline: Any) -> str:
    steps = said.get("num_train_timesteps", 1000)
    if len(pipeline.schedule.alphas_cumprod) != steps:
        return f"num_train_timesteps is {steps!r}, read as {len(pipeline.schedule.alphas_cumprod)}"
    return "" if np.isfinite(np.asarray(pipeline.schedule.alphas_cumprod)).all() else "not finite"


def _linked(model: Path, target: Path) -> Path:
    """A copy of a model folder whose files are links: they are replaced, never written to."""
    for file in (path for path in model.rglob("*") if path.is_file()):
        place = target / file.relative_to(model)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(file)
    return target


def _dumped(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


KINDS = (
    Kind("manifests", 3200, manifest),
    Kind("captions and names", 1100, captions),
    Kind("weights", 1500, weights),
    Kind("concept bank", 1000, bank),
    Kind("edit file", 1000, edit),
    Kind("second moments", 700, moments),
    Kind("model configs", 400, model_config),
    Kind("tokenizer", 500, tokenizer),
    Kind("pictures", 300, picture),
)
