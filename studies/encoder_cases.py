"""Small text encoders ready to be edited and judged: for `studies.architectures`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emcid_jax.concepts.requests import EditRequest
from emcid_jax.concepts.templates import OBJECT_TEMPLATES
from emcid_jax.editing.encoder.whole_prompts import end_features
from emcid_jax.editing.moments import second_moment
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.evaluation.text_space.nearest_name import nearest
from emcid_jax.pipelines.pipeline import Pipeline, tokenize
from emcid_jax.sprites.catalogue import catalogue
from emcid_jax.sprites.factors import LABELS, label_array, split_logits
from studies import small_encoders
from studies.small_encoders import Encoder

UNSEEN = "a picture of a {}"
"""Template of judging."""
HELD = 50
"""Names that are neither edited nor a destination."""


class Case(NamedTuple):
    """One or several encoders whose final states are concatenated."""

    encoders: list[Encoder]
    moments: list[SecondMoments]
    names: list[str]
    looks: np.ndarray
    """Labels of shape, colour and texture of every name."""
    clean: list[np.ndarray]
    """Final features of every name in the unseen template, by encoder."""
    readout: dict[str, np.ndarray]
    """Of the concatenated features."""

    @property
    def width(self) -> int:
        """Key dimensions of the encoder that has fewest."""
        return min(one.pipeline.encoder.model.config.intermediate_size for one in self.encoders)

    def requests(
        self, count: int, templates: tuple[str, ...] = OBJECT_TEMPLATES
    ) -> list[EditRequest]:
        """The first names, each onto the one half the list further on."""
        free = len(self.names) - HELD
        dests = [self.names[(i + free // 2) % free] for i in range(count)]
        pairs = zip(self.names[:count], dests, strict=True)
        return [EditRequest(source, dest, templates) for source, dest in pairs]


def cut(encoder: Encoder) -> Pipeline:
    """The pipeline without the encoder's last block, as diffusers ships Stable Diffusion 2."""
    pipeline = encoder.pipeline
    blocks = pipeline.encoder.model.config.num_hidden_layers - 1
    config = dataclasses.replace(pipeline.encoder.model.config, num_hidden_layers=blocks)
    text = dict(pipeline.params["text_encoder"]["text_model"])
    text["encoder"] = {f"layers.{i}": text["encoder"][f"layers.{i}"] for i in range(blocks)}
    params = pipeline.params | {"text_encoder": {"text_model": text}}
    return dataclasses.replace(
        pipeline,
        texts={pipeline.encoder.name: pipeline.encoder.model.clone(config=config)},
        params=params,
    )


def make_case(parts: Sequence[str], base: Pipeline, folder: Path) -> Case:
    """Encoders with their second moments; where the training left no read-out, one is fitted."""
    encoders = [small_encoders.train(part.removesuffix(" cut"), base, folder) for part in parts]
    if parts[0].endswith(" cut"):
        encoders = [Encoder(cut(one), {}) for one in encoders]
    captions = small_encoders.captions(base.encoder.tokenizer, 3000, seed=1)
    ids = tokenize(base.encoder.tokenizer, [caption.text for caption in captions])
    classes, world = small_encoders.world_names(base.encoder.tokenizer), catalogue()
    names = [world.objects[i] for i in classes]
    moments = []
    for one in encoders:
        layers = range(one.pipeline.encoder.model.config.num_hidden_layers)
        params = one.pipeline.params["text_encoder"]
        *_, last = second_moment.accumulate(one.pipeline.encoder.model, params, ids, layers)
        moments.append(second_moment.finish(last))
    clean = [
        end_features(
            one.pipeline.encoder,
            one.pipeline.params["text_encoder"],
            tokenize(base.encoder.tokenizer, [UNSEEN.format(name) for name in names]),
        )
        for one in encoders
    ]
    readout = encoders[0].readout
    if len(encoders) > 1 or not readout:
        features = [
            end_features(one.pipeline.encoder, one.pipeline.params["text_encoder"], ids)
            for one in encoders
        ]
        labels = label_array([caption.picture for caption in captions])
        readout = fit_readout(np.concatenate(features, axis=1), labels)
    looks = np.array([world.looks[i] for i in classes])
    return Case(encoders, moments, names, looks, clean, readout)


def fit_readout(features: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Least squares onto one-hot labels, a column per label; the factors' largest is read."""
    parts = split_logits(np.zeros((1, LABELS)))
    wanted = [np.eye(part.shape[1])[one] for part, one in zip(parts, labels.T, strict=True)]
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    found = np.linalg.lstsq(inputs, np.concatenate(wanted, axis=1), rcond=None)[0]
    return {"kernel": found[:-1], "bias": found[-1]}


def looks_right(case: Case, features: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """Whether shape, colour and texture are all read right."""
    logits = features @ case.readout["kernel"] + case.readout["bias"]
    found = np.stack([part.argmax(axis=1) for part in split_logits(logits)[:3]], axis=1)
    return (found == looks).all(axis=1)


def judge(case: Case, requests: Sequence[EditRequest], features: np.ndarray) -> dict[str, float]:
    """Shares of edited and of held names, from the features of all names."""
    clean = np.concatenate(case.clean, axis=1)
    found, count = nearest(features, clean), len(requests)
    dests = np.array([case.names.index(str(request.dest)) for request in requests])
    held = np.arange(len(case.names) - HELD, len(case.names))
    moved = np.linalg.norm(features - clean, axis=1) / np.linalg.norm(clean, axis=1)
    return {
        "edited": float((found[:count] == dests).mean()),
        "read": float(looks_right(case, features[:count], case.looks[dests]).mean()),
        "kept": float((found[held] == held).mean()),
        "kept read": float(looks_right(case, features[held], case.looks[held]).mean()),
        "drift": float(np.median(moved[held])),
    }
