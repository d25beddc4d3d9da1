"""The text encoder against transformers, its edits against a torch hook, its resumption."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from emcid_jax.models.text.clip import ClipTextConfig, ClipTextModel, disk_name
from emcid_jax.models.weights.params import (
    abstract_params,
    params_hash,
    read_params,
    to_hf,
    write_params,
)
from emcid_jax.runtime.errors import UserError

VOCABULARY, TOKENS, BLOCKS, DIM = 100, 12, 4, 32
END = VOCABULARY - 1
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": DIM,
    "intermediate_size": 80,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
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


def relative_error(ours, theirs):
    theirs = theirs.detach().numpy()
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def save_random(folder, activation="gelu", eos=2):
    """A random text encoder in the published layout: `text_model.*` and an old index buffer."""
    config = transformers.CLIPTextConfig(**TINY, hidden_act=activation, eos_token_id=eos)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in transformers.CLIPTextModel(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        # Large enough that every bias, norm and activation matters.
        tensors[f"text_model.{name}"] = 0.2 * noise + float("norm" in name and "weight" in name)
    tensors["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_both(folder):
    theirs = transformers.CLIPTextModel.from_pretrained(folder).eval()
    config = ClipTextConfig.from_dict(json.loads((folder / "config.json").read_text()))
    ours = ClipTextModel(config)
    abstract = abstract_params(ours, jax.ShapeDtypeStruct((1, TOKENS), jnp.int32))
    return ours, read_params(folder, abstract, disk_name), theirs


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
    config = ClipTextConfig.from_dict(json.loads((tmp_path / "config.json").read_text()))
    ours = ClipTextModel(config, projection=True)
    abstract = abstract_params(ours, jax.ShapeDtypeStruct((1, TOKENS), jnp.int32))
    params = read_params(tmp_path, abstract, disk_name)
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
    plain = ClipTextModel(config).apply({"params": {"text_model": params["text_model"]}}, ids)
    assert plain.projected is None
    np.testing.assert_allclose(plain.pooled, out.pooled, rtol=1e-5, atol=1e-5)


def test_written_projection_loads_in_transformers(tmp_path):
    theirs = save_projected(tmp_path / "theirs", *PROJECTED["gelu"][:2], 24, 4)
    ours = ClipTextModel(ClipTextConfig.from_dict(theirs.config.to_dict()), projection=True)
    abstract = abstract_params(ours, jax.ShapeDtypeStruct((1, TOKENS), jnp.int32))
    params = read_params(tmp_path / "theirs", abstract, disk_name)
    theirs.config.save_pretrained(tmp_path)
    write_params(tmp_path / "model.safetensors", params)
    loaded = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(our module, parameters, transformers model) of the gelu, legacy variant."""
    folder = tmp_path_factory.mktemp("text_encoder")
    save_random(folder)
    return load_both(folder)


def prompts(end=END):
    """Three prompts of 4, 7 and 12 tokens, and their mask; ids above `end` follow the end."""
    rng = np.random.default_rng(3)
    ids = rng.integers(58, 98, (3, TOKENS))
    ids[:, 0] = 1
    mask = np.ones_like(ids)
    for row, length in enumerate((4, 7, TOKENS)):
        ids[row, 1 : length - 1] = rng.integers(3, 56, length - 2)
        ids[row, length - 1] = end
        mask[row, length:] = 0
    return jnp.asarray(ids, jnp.int32), jnp.asarray(mask, jnp.int32)


def torch_states(model, ids, mask=None, edit=None):
    """Outputs, block outputs, fc2 inputs and fc2 outputs of transformers, through hooks."""
    hidden, keys, values, handles = [], [], [], []
    for index, layer in enumerate(model.encoder.layers):

        def after_block(_, __, output, index=index):
            if edit is not None and index == edit[0]:
                output = output.clone()
                for row, place in enumerate(edit[1].tolist()):
                    output[row, place] = output[row, place] + edit[2][row]
            hidden.append(output)
            return output

        def after_fc2(_, inputs, output):
            keys.append(inputs[0])
            values.append(output)

        handles.append(layer.register_forward_hook(after_block))
        handles.append(layer.mlp.fc2.register_forward_hook(after_fc2))
    try:
        out = model(
            torch.tensor(np.asarray(ids)).long(),
            attention_mask=None if mask is None else torch.tensor(np.asarray(mask)),
        )
    finally:
        for handle in handles:
            handle.remove()
    return out, hidden, keys, values


def assert_same(ours, states, most=1e-4):
    out, hidden, keys, values = states
    assert relative_error(ours.last_hidden_state, out.last_hidden_state) <= most
    assert relative_error(ours.pooled, out.pooler_output) <= most
    for mine, other in ((ours.hidden, hidden), (ours.keys, keys), (ours.values, values)):
        assert len(mine) == len(other) == BLOCKS
        for index in range(BLOCKS):
            assert relative_error(mine[index], other[index]) <= most


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


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_delta_equals_a_torch_hook(block, masked, models):
    ours, params, theirs = models
    ids, mask = prompts()
    mask = mask if masked else None
    position = jnp.array([2, 5, 0])
    delta = np.random.default_rng(5).standard_normal((3, DIM)).astype(np.float32)
    out = ours.apply(
        {"params": params}, ids, mask, delta=jnp.asarray(delta), position=position, block=block
    )
    edit = (block, position, torch.tensor(delta))
    assert_same(out, torch_states(theirs, ids, mask, edit))


def test_gradient_of_delta_equals_autograd(models):
    ours, params, theirs = models
    ids, _ = prompts()
    position = jnp.array([2, 5, 7])
    rng = np.random.default_rng(6)
    delta = rng.standard_normal((3, DIM)).astype(np.float32)
    weight = rng.standard_normal((3, TOKENS, DIM)).astype(np.float32)

    def loss(delta):
        out = ours.apply({"params": params}, ids, delta=delta, position=position, block=1)
        return (out.last_hidden_state * weight).sum() + out.pooled.sum()

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(delta))
    leaf = torch.tensor(delta, requires_grad=True)
    out = torch_states(theirs, ids, edit=(1, position, leaf))[0]
    ((out.last_hidden_state * torch.tensor(weight)).sum() + out.pooler_output.sum()).backward()
    assert relative_error(gradient, leaf.grad) <= 1e-4


@pytest.mark.parametrize("start", range(BLOCKS + 1))
def test_resuming_gives_the_states_of_the_full_run(start, models):
    ours, params, theirs = models
    ids, mask = prompts()
    delta = jnp.asarray(np.random.default_rng(7).standard_normal((3, DIM)), jnp.float32)
    edit = {"delta": delta, "position": jnp.array([1, 3, 6]), "block": 1}
    full = ours.apply({"params": params}, ids, mask, **edit)
    if start == 0:
        hidden = theirs.embeddings(torch.tensor(np.asarray(ids)).long()).detach().numpy()
        hidden = jnp.asarray(hidden)
    else:
        hidden = full.hidden[start - 1]
    edit = edit if start <= 1 else {}
    resumed = ours.apply({"params": params}, ids, mask, hidden=hidden, start=start, **edit)
    for name in ("hidden", "keys", "values"):
        before, after = getattr(full, name), getattr(resumed, name)
        assert after[:start] == (None,) * start
        for index in range(start, BLOCKS):
            np.testing.assert_allclose(after[index], before[index], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        resumed.last_hidden_state, full.last_hidden_state, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(resumed.pooled, full.pooled, rtol=1e-5, atol=1e-5)


def test_resuming_needs_no_parameters_below(models):
    ours, params, _ = models
    ids, _ = prompts()
    full = ours.apply({"params": params}, ids)
    text = params["text_model"]
    upper = {"encoder": {"layers.3": text["encoder"]["layers.3"]}}
    upper = {"text_model": upper | {"final_layer_norm": text["final_layer_norm"]}}
    resumed = ours.apply({"params": upper}, ids, hidden=full.hidden[2], start=3)
    np.testing.assert_allclose(resumed.pooled, full.pooled, rtol=1e-5, atol=1e-5)


def test_unused_blocks_are_not_computed(models):
    ours, params, _ = models
    ids, _ = prompts()

    def operations(use):
        def run(params, ids):
            return use(ours.apply({"params": params}, ids))

        return jax.jit(run).lower(params, ids).compile().cost_analysis()["flops"]

    everything = operations(lambda out: out.last_hidden_state)
    assert 0 < operations(lambda out: out.keys[0]) < everything / BLOCKS
    assert operations(lambda out: out.values[1]) < 2.1 * everything / BLOCKS


def test_position_outside_the_prompt_changes_nothing(models):
    ours, params, _ = models
    ids, _ = prompts()
    plain = ours.apply({"params": params}, ids)
    edit = {"delta": jnp.ones((3, DIM)), "position": jnp.array([-1, TOKENS, 99]), "block": 0}
    edited = ours.apply({"params": params}, ids, **edit)
    np.testing.assert_array_equal(edited.last_hidden_state, plain.last_hidden_state)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": jnp.zeros((3, DIM))}, "all of delta, position and block"),
        ({"block": 1}, "all of delta, position and block"),
        ({"start": 1}, "without hidden"),
        ({"start": 9, "hidden": jnp.zeros((3, TOKENS, DIM))}, "has 4 blocks"),
        (
            {
                "delta": jnp.zeros((3, DIM)),
                "position": jnp.zeros(3, jnp.int32),
                "block": 1,
                "start": 2,
                "hidden": jnp.zeros((3, TOKENS, DIM)),
            },
            "blocks 2 to 3 run",
        ),
    ],
)
def test_impossible_calls_are_refused(options, message, models):
    ours, params, _ = models
    with pytest.raises(ValueError, match=message):
        ours.apply({"params": params}, prompts()[0], **options)


def test_too_long_prompt_is_refused(models):
    ours, params, _ = models
    with pytest.raises(ValueError, match="13 tokens; the model takes 12"):
        ours.apply({"params": params}, jnp.zeros((1, TOKENS + 1), jnp.int32))
