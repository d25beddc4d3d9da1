"""Any JSON value in any field of a model's configs: it builds, or it is one line of an error."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emcid_jax.models.scoring.clip_vision import ClipVisionConfig, ClipVisionModelWithProjection
from emcid_jax.models.scoring.vit import ViTConfig, ViTForImageClassification
from emcid_jax.models.text.tokenizer import Tokenizer, load_tokenizer, tokenize
from emcid_jax.models.weights.params import abstract_params
from emcid_jax.pipelines.families import SD
from emcid_jax.pipelines.pipeline import load_pipeline, make_pipeline, parameter_shapes
from emcid_jax.runtime.errors import UserError

FIELDS = {
    "text_encoder": "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act"
    " layer_norm_eps vocab_size max_position_embeddings eos_token_id projection_dim",
    "unet": "sample_size in_channels out_channels block_out_channels layers_per_block"
    " down_block_types up_block_types attention_head_dim cross_attention_dim freq_shift norm_eps"
    " transformer_layers_per_block only_cross_attention use_linear_projection flip_sin_to_cos"
    " norm_num_groups act_fn class_embed_type mid_block_scale_factor dropout new_field",
    "vae": "in_channels out_channels latent_channels block_out_channels layers_per_block"
    " down_block_types up_block_types norm_num_groups use_quant_conv use_post_quant_conv"
    " mid_block_add_attention sample_size scaling_factor act_fn shift_factor latents_mean",
    "scheduler": "_class_name num_train_timesteps beta_start beta_end beta_schedule trained_betas"
    " rescale_betas_zero_snr prediction_type clip_sample set_alpha_to_one steps_offset"
    " timestep_spacing skip_prk_steps thresholding use_karras_sigmas final_sigmas_type",
    "vit": "hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act"
    " layer_norm_eps image_size patch_size num_channels qkv_bias num_labels id2label",
    "clip_vision": "hidden_size num_hidden_layers hidden_act layer_norm_eps image_size patch_size"
    " num_channels projection_dim vision_config",
}
TINY = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWER = TINY | {"image_size": 8, "patch_size": 4, "num_channels": 3}

NUMBERS = st.integers(-2, 9) | st.sampled_from(
    [0.0, 0.5, 1.0, -1.5, 1e-300, 1e300, math.nan, math.inf, 2**31, 2**63, 10**400, 100_000, 4096]
)
SCALARS = (
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "false", "8", "gelu", "x" * 999])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["0", "a"]), inner),
    max_leaves=6,
) | st.sampled_from([[8, 8], [16, 16], [1, 1], [[[]]], [False, True], [16] * 99])


def require_one_line(make: Callable[[], object], name: str) -> object | None:
    """What `make` gives, or None if it ends with a user error of one line that names the file."""
    try:
        return make()
    except UserError as error:
        said = str(error)
    assert name in said
    assert "\n" not in said
    assert len(said) < 1000
    return None


@pytest.fixture(scope="module")
def configs(tiny_pipeline_folder: Path) -> dict[str, dict[str, Any]]:
    return {
        part: json.loads((tiny_pipeline_folder / part / name).read_text())
        for part, name in SD.config_files.items()
    }


@pytest.fixture(scope="module")
def tokenizer(tiny_pipeline_folder: Path) -> Tokenizer:
    return load_tokenizer(tiny_pipeline_folder / "tokenizer")


@pytest.mark.parametrize("part", SD.config_files)
@hypothesis.settings(max_examples=100)
@given(st.data())
def test_a_pipeline(
    part: str, configs: dict[str, dict[str, Any]], tokenizer: Tokenizer, data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(FIELDS[part].split()))
    changed = configs | {part: configs[part] | {field: data.draw(VALUES)}}
    name = "scheduler_config.json" if part == "scheduler" else f"model/{part}/config.json"
    require_one_line(lambda: make_pipeline(changed, {}, tokenizer, Path("model")), name)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
@hypothesis.settings(max_examples=8)
@given(st.data())
def test_what_is_accepted_is_built(
    part: str, configs: dict[str, dict[str, Any]], tokenizer: Tokenizer, data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(FIELDS[part].split()[:-1]))
    value = data.draw(st.integers(1, 9) | st.sampled_from([[1, 2], [8, 16], [16, 8], 0.5, True]))
    changed = configs | {part: configs[part] | {field: value}}
    made: Any = require_one_line(
        lambda: make_pipeline(changed, {}, tokenizer, Path("model")), f"model/{part}/config.json"
    )
    if made is not None:
        assert jax.tree.leaves(parameter_shapes(made))


@pytest.mark.parametrize("part", ["vit", "clip_vision"])
@hypothesis.settings(max_examples=100)
@given(st.data())
def test_a_judge(part: str, data: st.DataObject) -> None:
    field, value = data.draw(st.sampled_from(FIELDS[part].split())), data.draw(VALUES)
    kind = ViTConfig if part == "vit" else ClipVisionConfig
    config: Any = require_one_line(
        lambda: kind.from_dict(TOWER | {field: value}, "judge/config.json"), "judge/config.json"
    )
    small = config is not None and max(config.image_size, config.num_hidden_layers) < 20
    if small and data.draw(st.integers(0, 9)) == 0:
        module = ViTForImageClassification if part == "vit" else ClipVisionModelWithProjection
        shape = (1, config.image_size, config.image_size, config.num_channels)
        assert abstract_params(module(config), jax.ShapeDtypeStruct(shape, jnp.float32))


@hypothesis.settings(max_examples=25)
@given(st.data())
def test_a_tokenizer(
    tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny_pipeline_folder / "tokenizer", folder)
    file = folder / "tokenizer_config.json"
    fields = ["model_max_length", "eos_token", "pad_token", "bos_token", "tokenizer_class", "extra"]
    content = json.loads(file.read_text()) | {data.draw(st.sampled_from(fields)): data.draw(VALUES)}
    file.write_text(json.dumps(content))
    found: Any = require_one_line(lambda: load_tokenizer(folder), str(folder))
    if found is not None:
        assert tokenize(found, ["a dog"]).shape == (1, found.model_max_length)


@pytest.mark.parametrize(
    "file", ["model_index.json", *(f"{part}/{name}" for part, name in SD.config_files.items())]
)
@pytest.mark.parametrize("content", ["", "{", "[]", "1", '{"a": NaN}', "[" * 100_000])
def test_what_is_no_object(
    file: str, content: str, tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_pipeline_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / file).write_text(content)
    assert require_one_line(lambda: load_pipeline(folder), file) is None
