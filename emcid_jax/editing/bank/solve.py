"""Stage II over a bank: from its memories to the edit of every text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64

from emcid_jax.concepts import spans
from emcid_jax.concepts.requests import EditRequest
from emcid_jax.config import StageTwoConfig
from emcid_jax.editing.bank import memories
from emcid_jax.editing.bank.concepts import ConceptBank
from emcid_jax.editing.bank.memories import Memory, Record
from emcid_jax.editing.encoder.sites import Site, by_site, filed_sites
from emcid_jax.editing.moments.second_moment import SecondMoments
from emcid_jax.editing.stage_one import edited_tokens
from emcid_jax.editing.stage_two import preservation
from emcid_jax.editing.stage_two import solve as stage_two
from emcid_jax.editing.stage_two.solve import WeightEdit
from emcid_jax.editing.units import solve as units
from emcid_jax.editing.units.statistics import UnitStatistics
from emcid_jax.models.text.encoder import TextEncoder
from emcid_jax.models.weights.params import params_hash
from emcid_jax.pipelines.pipeline import Pipeline
from emcid_jax.runtime.errors import UserError


def solve(
    concepts: ConceptBank,
    pipeline: Pipeline,
    moments: Mapping[str, SecondMoments | UnitStatistics],
    config: StageTwoConfig,
) -> dict[str, WeightEdit]:
    """Stage II over all concepts of strength > 0, from pristine weights, in canonical order.

    `moments` go by text encoder, as the edit does. The same concepts give the same bits, whatever
    the order they were added and removed in.

    Raises:
        UserError: no concept to write, memories of another text encoder or tokenizer, memories of
            different blocks, and what `solve.solve` raises.
    """
    require_base(concepts, pipeline)
    return solve_relative(concepts, pipeline, moments, config)


def solve_relative(
    concepts: ConceptBank,
    pipeline: Pipeline,
    moments: Mapping[str, SecondMoments | UnitStatistics],
    config: StageTwoConfig,
) -> dict[str, WeightEdit]:
    """As `solve`, on a relative of the model that the memories were found with."""
    where = sites_of(concepts, pipeline)
    encoders = {encoder.name: encoder for encoder in pipeline.encoders}
    return {
        site.encoder: solve_one(
            concepts,
            encoders[site.encoder],
            where,
            moments[site.encoder],
            config.of(site.encoder),
        )
        for site in where
    }


def solve_one(
    concepts: ConceptBank,
    encoder: TextEncoder,
    where: tuple[Site, ...],
    moments: SecondMoments | UnitStatistics,
    config: StageTwoConfig,
) -> WeightEdit:
    """The edit of one text encoder; `config` holds its own layers, `where` is of all memories."""
    active = concepts.active
    records = [concepts.records[concept.memory] for concept in active]
    requests = [concept.request for concept in active]
    (block,) = (site.layer for site in where if site.encoder == encoder.name)
    if isinstance(moments, UnitStatistics) or config.solver == "units":
        offsets = [c.strength * r.memory.delta for c, r in zip(active, records, strict=True)]
        own = [by_site(offset, where)[encoder.name] for offset in offsets]
        return _solve_units(requests, own, encoder, moments, config, block)
    prompts = spans.source_prompts(encoder.tokenizer, requests)
    counts = [memories.edited_tokens(record.provenance) for record in records]
    targets = [
        by_site(target(r.memory, c.strength), where)[encoder.name]
        for r, c in zip(records, active, strict=True)
    ]
    return stage_two.solve(
        encoder.model,
        encoder.params,
        np.concatenate(targets),
        edited_tokens.rows(prompts, encoder.tokenizer.eos_token_id, counts),
        moments,
        config,
        block=block,
        weights=np.repeat([request.weight for request in requests], counts),
        protection=preservation.protect(encoder, requests, config),
    )


def _solve_units(
    requests: Sequence[EditRequest],
    offsets: Sequence[Float[np.ndarray, "edited dim"]],
    encoder: TextEncoder,
    statistics: SecondMoments | UnitStatistics,
    config: StageTwoConfig,
    block: int,
) -> WeightEdit:
    """Concepts as units, see `units.solve`."""
    if config.solver != "units" or not isinstance(statistics, UnitStatistics):
        raise UserError(
            f"config.stage_two.solver is {config.solver!r}, but what was measured of the encoder "
            "is for another one; tasks edit, bank and evaluate measure what 'units' needs"
        )
    if any(len(offset) > 1 for offset in offsets):
        raise UserError("memories have offsets of several tokens; units take one token each")
    return units.solve(encoder, requests, np.concatenate(offsets), statistics, config, block=block)


def target(memory: Memory, strength: float) -> Float64[np.ndarray, " dim"]:
    """h0 + strength * delta; z itself at strength 1. All edited tokens', one after the other."""
    return memory.z.astype(np.float64) - (1 - strength) * memory.delta.astype(np.float64)


def sites_of(concepts: ConceptBank, pipeline: Pipeline) -> tuple[Site, ...]:
    """Where the memories of all concepts of strength > 0 were found; UserError as `common_sites`
    says, or if there are none."""
    if not concepts.active:
        raise UserError("the bank has no concept of strength > 0; add one")
    return common_sites([concepts.records[one.memory] for one in concepts.active], pipeline)


def common_sites(records: Sequence[Record], pipeline: Pipeline) -> tuple[Site, ...]:
    """Where all memories were found. UserError if there are several places."""
    found = list(
        dict.fromkeys(
            filed_sites(
                record.provenance["stage_one"],
                pipeline.texts,
                f"{memories.key(record.provenance)}{memories.SUFFIX}",
            )
            for record in records
        )
    )
    if len(found) != 1:
        blocks = sorted({site.layer for where in found for site in where})
        raise UserError(
            f"the bank's memories are of blocks {blocks}; an edit takes one in every text encoder: "
            "remove the others"
        )
    return found[0]


def require_base(concepts: ConceptBank, pipeline: Pipeline) -> None:
    """UserError unless all active memories were found with these text encoders and tokenizers."""
    model = {encoder.name: params_hash(encoder.params) for encoder in pipeline.encoders}
    for part, wanted in {**model, **memories.tokenizer_hashes(pipeline)}.items():
        others = [
            concept.request.source
            for concept in concepts.active
            if concepts.records[concept.memory].provenance["model"].get(part) != wanted
        ]
        if others:
            raise UserError(
                f"{len(others)} memories, the first of {others[0]!r}, were found with another "
                f"{part} than that of {pipeline.folder}; give the model they were made for, take "
                "the bank to a fine-tuned one (task bank, operation port), or add the requests to "
                "a new bank with this one"
            )
