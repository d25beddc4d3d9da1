"""The text encoder against transformers: every state, every layout on disk, every width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from clip_oracle import (
    END,
    TINY,
    assert_same,
    load_both,
    prompts,
    read_ours,
    relative_error,
    save_random,
    torch_states,
)
from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel, disk_name
from emcid_jax.models.weights.params import (
    abstract_params,
    params_hash,
    read_params,
    to_hf,
    write_params,
)
from emcid_jax.runtime.errors import UserError

# (activation, eos_token_id of the config, id the prompts end with)
VARIANTS = {
    "quick_gelu, legacy end": ("quick_gelu", 2, END),
    "gelu, legacy end": ("gelu", 2, END),
    "gelu, true end": ("gelu", 57, 57),
}
SD1 = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "vocab_size": 49408,
}
SD2 = SD1 | {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
}


# Widths that differ, so that a transposed projection does not fit; SDXL's second encoder pads
# with token 0.
PROJECTED = {"gelu": ("gelu", 2, END, 24, 4), "quick_gelu": ("quick_gelu", 57, 57, 40, 2)}


def save_projected(folder, activation, eos, width, heads, layout="prefixed"):
    """A random CLIPTextModelWithProjection as transformers writes it, or without `text_model.`."""
    values = TINY | {"num_attention_heads": heads, "projection_dim": width}
    config = transformers.CLIPTextConfig(**values, hidden_act=activation, eos_token_id=eos)
    theirs = transformers.CLIPTextModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(11)
    for name, tensor in theirs.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data = 0.2 * noise + float("norm" in name and "weight" in name)
    theirs.save_pretrained(folder)
    if layout == "flat":
        file = folder / "model.safetensors"
        flat = {name.removeprefix("text_model."): t for name, t in load_file(file).items()}
        save_file(flat, file, metadata={"format": "pt"})
    return theirs


@pytest.mark.parametrize("layout", ["prefixed", "flat"])
@pytest.mark.parametrize("variant", PROJECTED)
def test_projected_model_equals_transformers(variant, layout, tmp_path):
    activation, eos, end, width, heads = PROJECTED[variant]
    theirs = save_projected(tmp_path, activation, eos, width, heads, layout)
    ours, params = read_ours(tmp_path, projection=True)
    ids, mask = prompts(end)
    ids = jnp.where(mask == 1, ids, 0)  # the padding token
    out = jax.jit(ours.apply)({"params": params}, ids)

    states = torch_states(theirs.text_model, ids)
    assert_same(out, states)
    expected = theirs(torch.tensor(np.asarray(ids)).long(), output_hidden_states=True)
    assert out.projected.shape == (3, width)
    assert relative_error(out.projected, expected.text_embeds) <= 1e-4
    # What SDXL's UNet reads: the last but one block's output, without the final norm.
    assert relative_error(out.hidden[-2], expected.hidden_states[-2]) <= 1e-4
    assert relative_error(out.hidden[-1], expected.hidden_states[-1]) <= 1e-4

    # The projection is all that it adds.
    plain = ClipTextModel(ours.config).apply({"params": {"text_model": params["text_model"]}}, ids)
    assert plain.projected is None
    np.testing.assert_allclose(plain.pooled, out.pooled, rtol=1e-5, atol=1e-5)


def test_written_projection_loads_in_transformers(tmp_path):
    theirs = save_projected(tmp_path / "theirs", *PROJECTED["gelu"][:2], 24, 4)
    _, params = read_ours(tmp_path / "theirs", projection=True)
    theirs.config.save_pretrained(tmp_path)
    write_params(tmp_path / "model.safetensors", params)
    loaded = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_state_equals_transformers(variant, masked, tmp_path):
    activation, eos, end = VARIANTS[variant]
    save_random(tmp_path, activation, eos)
    ours, params, theirs = load_both(tmp_path)
    ids, mask = prompts(end)
    mask = mask if masked else None
    out = jax.jit(ours.apply)({"params": params}, ids, mask)
    assert_same(out, torch_states(theirs, ids, mask))


def test_layout_of_transformers_5_loads(tmp_path, models):
    ours, _, theirs = models
    theirs.save_pretrained(tmp_path / "resaved")
    fresh = transformers.CLIPTextModel(theirs.config)
    fresh.load_state_dict(theirs.state_dict())
    fresh.save_pretrained(tmp_path / "fresh")
    prefixes = set()
    for folder in (tmp_path / "resaved", tmp_path / "fresh"):
        again, params, _ = load_both(folder)
        assert again.config == ours.config
        assert params_hash(params) == params_hash(models[1])
        prefixes |= {name.split(".")[0] for name in load_file(folder / "model.safetensors")}
    # If transformers goes back to one layout, `disk_name` can go.
    assert {"embeddings", "encoder"} <= prefixes


def test_written_encoder_loads_in_transformers(tmp_path, models):
    _, params, theirs = models
    theirs.config.save_pretrained(tmp_path)
    write_params(tmp_path / "model.safetensors", params)
    loaded = transformers.CLIPTextModel.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=0)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == {"text_model"}


def test_half_precision_computes_near_float32(models):
    ours, params, _ = models
    ids, _ = prompts()
    full = ours.apply({"params": params}, ids)
    half = ClipTextModel(ours.config, jnp.bfloat16).apply({"params": params}, ids)
    assert half.last_hidden_state.dtype == half.keys[0].dtype == jnp.bfloat16
    difference = jnp.abs(half.last_hidden_state.astype(jnp.float32) - full.last_hidden_state)
    assert float(difference.max() / jnp.abs(full.last_hidden_state).max()) < 0.05


@pytest.mark.parametrize("values", [SD1, SD2], ids=["SD 1.x", "SD 2.x"])
def test_full_size_names_and_shapes_equal_transformers(values):
    config = ClipTextConfig.from_dict(values)
    ours = abstract_params(ClipTextModel(config), jax.ShapeDtypeStruct((1, 77), jnp.int32))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), ours)
    with torch.device("meta"):
        theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**values))
    expected = {f"text_model.{name}": tuple(t.shape) for name, t in theirs.state_dict().items()}
    assert {name: array.shape for name, array in to_hf(zeros).items()} == expected


# Stable Diffusion 1's is the one model of full size that every run of the tests looks at.
@pytest.mark.parametrize(
    "values",
    [pytest.param(SD1, id="SD 1.x"), pytest.param(SD2, id="SD 2.x", marks=pytest.mark.slow)],
)
def test_full_size_states_equal_transformers(values, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**values)).eval()
    for parameter in theirs.parameters():  # norms start at 1 and 0, which would hide mistakes
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    ours = ClipTextModel(ClipTextConfig.from_dict(values))
    abstract = abstract_params(ours, jax.ShapeDtypeStruct((1, 77), jnp.int32))
    params = read_params(tmp_path, abstract, disk_name)
    ids = np.random.default_rng(0).integers(0, 49408, (2, 77))
    out = jax.jit(ours.apply)({"params": params}, jnp.asarray(ids, jnp.int32))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids))
    errors = (
        relative_error(out.last_hidden_state, expected.last_hidden_state),
        relative_error(out.pooled, expected.pooler_output),
    )
    print(f"\n{values['hidden_size']} wide, last and pooled state: {errors}")
    assert max(errors) <= 1e-4


def test_initial_weights_follow_clip():
    values = TINY | {"hidden_size": 128, "projection_dim": 96}
    module = ClipTextModel(ClipTextConfig.from_dict(values), projection=True)
    ours = to_hf(module.init(jax.random.key(0), prompts()[0])["params"])
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(**values, eos_token_id=2)
    for name, tensor in transformers.CLIPTextModelWithProjection(config).state_dict().items():
        spread = float(tensor.std()) if tensor.ndim > 1 else 0.0
        assert ours[name].std() == pytest.approx(spread, rel=0.08), name


def test_width_of_no_projection_says_nothing():
    # Stable Diffusion 1.4's file has none, that of 1.5 has 768.
    plain = ClipTextConfig.from_dict(TINY)
    for width in (768, None):
        config = ClipTextConfig.from_dict(TINY | {"projection_dim": width})
        assert (config, hash(config)) == (plain, hash(plain))
        assert config.projection_dim == (width or 512)
    assert transformers.CLIPTextConfig().projection_dim == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection_dim": 0}, "projection_dim is 0"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ({"num_attention_heads": 5}, "not a multiple of num_attention_heads 5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"intermediate_size": "80"}, "intermediate_size is '80'; it must be a whole number"),
        ({"eos_token_id": [2, 3]}, r"eos_token_id is \[2, 3\]"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None"),
    ],
)
def test_bad_config_names_the_field(change, message):
    with pytest.raises(UserError, match=message):
        ClipTextConfig.from_dict(TINY | change)
