"""A text encoder and the tokenizer beside it: whether they belong together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from emcid_jax.models.text.clip import LEGACY_EOS, ClipTextConfig
from emcid_jax.models.text.tokenizer import Tokenizer
from emcid_jax.runtime.errors import UserError


def fitted(
    config: ClipTextConfig, tokenizer: Tokenizer, config_file: Path, folder: Path
) -> ClipTextConfig:
    """`config` with the end token that this tokenizer writes, once the two are checked.

    Configs that say `eos_token_id` 2 mean "the highest id of the prompt" (see `LEGACY_EOS`). That
    is the end token, unless the tokenizer was given tokens since: these have higher ids, and
    transformers then pools at them. Here the state at the end token is pooled in any case.

    Args:
        config: of the text encoder.
        tokenizer: what its prompts are tokenized by.
        config_file: where `config` was read, for messages.
        folder: the tokenizer's, for messages.

    Raises:
        UserError: the prompts are too long for the encoder, hold tokens that its table has no row
            for, or end with another token: one line with both files and both values.
    """
    file = folder / "tokenizer_config.json"
    if tokenizer.model_max_length > config.max_position_embeddings:
        raise UserError(
            f"{file}: model_max_length is {tokenizer.model_max_length}, but {config_file}: "
            f"max_position_embeddings is {config.max_position_embeddings}; make them equal"
        )
    if tokenizer.backend_tokenizer is None:  # Only lengths are known, see `pipelines.abstract`.
        return config
    tokens = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    last = max(tokens, key=tokens.__getitem__)
    if tokens[last] >= config.vocab_size:
        raise UserError(
            f"{folder}: the token {last!r} has id {tokens[last]}, but {config_file}: vocab_size is "
            f"{config.vocab_size}, so the token table has no row for it; resize the table "
            "(transformers: resize_token_embeddings) or take the tokenizer that the model came with"
        )
    if config.eos_token_id not in (LEGACY_EOS, tokenizer.eos_token_id):
        raise UserError(
            f"{file}: the end token has id {tokenizer.eos_token_id}, but {config_file}: "
            f"eos_token_id is {config.eos_token_id}; set it to {tokenizer.eos_token_id}"
        )
    return dataclasses.replace(config, eos_token_id=tokenizer.eos_token_id)
