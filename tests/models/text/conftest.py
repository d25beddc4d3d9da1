"""A tiny text encoder, ours and transformers'."""

import pytest

from clip_oracle import load_both, save_random


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(our module, parameters, transformers model) of the gelu, legacy variant."""
    folder = tmp_path_factory.mktemp("text_encoder")
    save_random(folder)
    return load_both(folder)
