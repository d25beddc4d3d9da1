"""States of Gemma against the model run on one prompt alone, without padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studies.gemma_states import Prompt, Reader, stranger, tokens_of

PROMPTS = [Prompt((2, 7, 9, 4), 3), Prompt((2, 5), 1), Prompt((2, 7, 9, 8, 6, 3), 1)]


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """With a small model of the same kind in the place of the unpacked one."""
    import torch
    from transformers import Gemma3TextConfig, Gemma3TextModel

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    Gemma3TextModel(config).save_pretrained(tmp_path / "model")
    return tmp_path


def test_states_are_what_the_mlp_reads_and_are_kept(workdir: Path) -> None:
    import torch
    from transformers import Gemma3TextModel

    found = Reader(workdir, (0, 2)).states(PROMPTS, 2)
    model, read = Gemma3TextModel.from_pretrained(workdir / "model"), []
    model.layers[2].mlp.register_forward_pre_hook(lambda _, given: read.append(given[0][0]))
    with torch.no_grad():
        for ids, _ in PROMPTS:
            model(input_ids=torch.tensor([ids]))
    wanted = np.concatenate([one[start:] for one, (_, start) in zip(read, PROMPTS, strict=True)])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for path in (workdir / "model").iterdir():
        path.unlink()
    again = Reader(workdir, (0, 2))
    np.testing.assert_array_equal(again.states(PROMPTS, 2), found)
    assert not np.allclose(again.states(PROMPTS, 0), found)


def test_tokens_know_what_came_before() -> None:
    found = tokens_of([Prompt((2, 5, 6), 1), Prompt((2, 5, 7), 1)])
    assert found.recent[:, -3:].tolist() == [[0, 0, 5], [0, 5, 6], [0, 0, 5], [0, 5, 7]]
    assert found.text.tolist() == [0, 0, 1, 1]
    assert found.first.tolist() == [True, True, False, True]


def test_strangers_end_alike() -> None:
    begins = np.arange(100) % 2 == 0
    prompt = Prompt((2, 8, 10, 11, 13), 2)
    drawn = [stranger(prompt, begins, str(seed)) for seed in range(20)]
    assert drawn[0] == stranger(prompt, begins, "0")
    assert len(set(drawn)) > 10
    for one in drawn:
        assert one is not None
        assert (one.ids[:2], one.ids[-1], one.start) == ((2, 8), 13, 2)
        assert [bool(begins[token]) for token in one.ids[2:4]] == [True, False]
    assert stranger(Prompt((2, 8, 11), 2), begins, "") is None  # One token.
