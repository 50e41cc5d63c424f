"""The UNet against diffusers' on the same random weights, and its attention argument."""

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

from stal.model.checkpoint import load_unet
from stal.model.unet import Attention, UNet
from stal.model.unet_config import UNetConfig

SD15: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 48, 48),
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SD21 = SD15 | {
    "attention_head_dim": (2, 4, 6, 6),
    "use_linear_projection": True,
    "upcast_attention": True,
}
XL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 6),
    "cross_attention_dim": 40,
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}
SHAPES: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 12,
    "out_channels": 12,
    "block_out_channels": (96, 160, 224),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,  # the finest level attends on the way up alone
    "only_cross_attention": (True, False, False),
    "layers_per_block": 1,
    "attention_head_dim": (3, 5, 7),
    "cross_attention_dim": 32,
}
# What no released model sets, all at once.
RARE = SD15 | {
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "center_input_sample": True,
    "mid_block_scale_factor": 1.5,
    "norm_eps": 1e-3,
    "in_channels": 5,
    "out_channels": 3,
    "layers_per_block": (1, 2, 1, 3),
    "block_out_channels": (24, 32, 48, 40),
    "norm_num_groups": 4,
}
CONFIGS = {
    "sd15": SD15,
    "sd21": SD21,
    "xl": XL,
    "shapes": SHAPES,
    "only-cross-everywhere": SD15 | {"only_cross_attention": True},
    "rare-settings": RARE,
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def make_pair(config: dict[str, Any]) -> tuple[Any, UNet]:
    """diffusers' model with random weights and ours with the same; norms and biases random too."""
    torch.manual_seed(0)
    theirs: Any = UNet2DConditionModel(**config)
    theirs.eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) / max(parameter.shape[-1], 8) ** 0.5
    ours = UNet(UNetConfig.from_dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def make_inputs(config: dict, *, batch: int = 2, size: tuple[int, int] = (8, 8)) -> tuple:
    generator = torch.Generator().manual_seed(1)
    channels, width = config.get("in_channels", 4), config["cross_attention_dim"]
    sample = torch.randn(batch, channels, *size, generator=generator)
    text = torch.randn(batch, 7, width, generator=generator)
    added = None
    if "addition_embed_type" in config:
        sizes = torch.tensor([[1024.0, 768, 0, 0, 1024, 768]]).expand(batch, -1)
        added = {"text_embeds": torch.randn(batch, 20, generator=generator), "time_ids": sizes}
    return sample, text, added


def shapes(model: Any) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def cross_attention_layers(unet: UNet) -> dict[str, Attention]:
    """The layers that call `attention`, by name, in the order of their calls."""
    return {m.name: m for m in unet.modules() if isinstance(m, Attention) and m.is_cross}


def run_theirs(model, sample, timestep, text, added):
    return model(sample, timestep, text, added_cond_kwargs=added).sample


def to_double(added):
    return None if added is None else {key: value.double() for key, value in added.items()}


def check_parity(config, *, size=(8, 8), timestep=431, batch=2) -> None:
    """Equal in float64; in float32 at most twice as far from that as diffusers is."""
    theirs, ours = make_pair(config)
    sample, text, added = make_inputs(config, batch=batch, size=size)
    with torch.no_grad():
        theirs32 = run_theirs(theirs, sample, timestep, text, added)
        ours32 = ours(sample, timestep, text, added)
        args = (sample.double(), timestep, text.double(), to_double(added))
        theirs64 = run_theirs(theirs.double(), *args)
        ours64 = ours.double()(*args)
    assert ours32.shape == theirs32.shape == (batch, config.get("out_channels", 4), *size)
    torch.testing.assert_close(ours64, theirs64, rtol=1e-11, atol=1e-12)
    assert (ours32 - theirs64).abs().max() <= 2 * (theirs32 - theirs64).abs().max()
    assert (ours32 - theirs64).norm() <= 1e-5 * theirs64.norm()


@configs
def test_unet_equals_diffusers(config):
    check_parity(config)


@pytest.mark.parametrize(
    "size", [(9, 13), (5, 8), (1, 3)], ids=lambda size: "x".join(map(str, size))
)
@pytest.mark.parametrize("name", ["sd15", "xl", "shapes"])
def test_unet_equals_diffusers_at_sizes_that_do_not_halve(name, size):
    check_parity(CONFIGS[name], size=size)


@pytest.mark.parametrize(
    "timestep",
    [0, 999.0, 12.5, torch.tensor(3), torch.tensor([7.25]), torch.tensor([1, 500, 999])],
    ids=["int", "float", "fraction", "scalar-tensor", "one", "per-sample"],
)
def test_timestep_may_be_a_number_or_a_tensor(timestep):
    check_parity(SD15, timestep=timestep, batch=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@configs
def test_unet_saved_by_diffusers_is_read(config, dtype, tmp_path):
    theirs, _ = make_pair(config)
    theirs.to(dtype).save_pretrained(tmp_path)
    ours = load_unet(tmp_path)
    sample, text, added = make_inputs(config)
    assert not ours.training
    assert all(p.requires_grad and p.dtype is torch.float32 for p in ours.parameters())
    with torch.no_grad():
        expected = run_theirs(theirs.float(), sample, 20, text, added)
        torch.testing.assert_close(ours(sample, 20, text, added), expected, rtol=1e-4, atol=1e-5)


def test_dtype_of_the_weights_is_the_one_asked_for(tmp_path):
    make_pair(SD15)[0].save_pretrained(tmp_path)
    unet = load_unet(tmp_path, dtype=torch.bfloat16)
    sample, text, _ = make_inputs(SD15)
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}
    assert unet(sample.bfloat16(), 5, text.bfloat16()).dtype is torch.bfloat16


@configs
def test_attention_argument_sees_every_cross_attention_layer_in_order(config):
    theirs, ours = make_pair(config)
    size = (9, 13)
    sample, text, added = make_inputs(config, size=size)
    layers, calls = cross_attention_layers(ours), []

    def attention(name, q, module, height, width):
        assert module is ours.get_submodule(name)
        module = layers[name]
        assert q.shape == (2, module.heads, height * width, module.head_dim)
        assert q._is_view()
        assert q.stride(-1) == 1
        assert module.scale == module.head_dim**-0.5
        calls.append((name, height, width))
        k, v = (
            layer(text).view(2, 7, module.heads, module.head_dim).transpose(1, 2)
            for layer in (module.to_k, module.to_v)
        )
        return F.scaled_dot_product_attention(q, k, v)

    plain = ours(sample, 100, text, added)
    assert torch.equal(ours(sample, 100, None, added, attention=attention), plain)
    names = [name for name, _, _ in calls]
    assert names == list(layers)
    assert set(names) == {
        name
        for name, module in theirs.named_modules()
        if getattr(module, "is_cross_attention", False)
    }
    for name, height, width in calls:
        level = len(ours.config.block_out_channels) - 1  # of mid_block
        if name.startswith("down_blocks"):
            level = int(name.split(".")[1])
        elif name.startswith("up_blocks"):
            level -= int(name.split(".")[1])
        assert (height, width) == tuple(-(-side // 2**level) for side in size)


def test_only_cross_attention_asks_at_both_layers_but_not_in_the_middle():
    layers = cross_attention_layers(UNet(UNetConfig.from_dict(CONFIGS["only-cross-everywhere"])))
    first = {name.rpartition(".")[0] for name in layers if name.endswith("attn1")}
    second = {name.rpartition(".")[0] for name in layers if name.endswith("attn2")}
    assert second - first == {"mid_block.attentions.0.transformer_blocks.0"}
    assert first < second


def test_encoder_hidden_states_is_not_read_when_attention_is_given():
    unet = make_pair(SD15)[1]
    sample, text, _ = make_inputs(SD15)

    def nothing(name, q, module, height, width):
        return torch.zeros_like(q)

    out = unet(sample, 3, torch.full_like(text, torch.nan), attention=nothing)
    assert torch.equal(out, unet(sample, 3, None, attention=nothing))
    assert out.isfinite().all()


def test_attention_that_returns_another_shape_is_refused():
    unet = make_pair(SD15)[1]
    sample, _, _ = make_inputs(SD15)
    with pytest.raises(ValueError, match=r"attention must return q's shape .* at down_blocks\.0\."):
        unet(sample, 3, None, attention=lambda name, q, *_: q.transpose(1, 2))


@pytest.mark.parametrize("name", ["sd15", "xl", "shapes"])
def test_gradients_equal_diffusers(name):
    config = CONFIGS[name]
    theirs, ours = make_pair(config)
    theirs, ours = theirs.double(), ours.double()
    sample, text, added = make_inputs(config, size=(5, 7))
    added = to_double(added)
    torch.manual_seed(2)
    dout = torch.randn(2, config.get("out_channels", 4), 5, 7, dtype=torch.float64)
    grads = []
    for run, model in ((run_theirs, theirs), (lambda m, *a: m(*a), ours)):
        inputs = sample.double().requires_grad_(), text.double().requires_grad_()
        out = run(model, inputs[0], 77, inputs[1], added)
        parameters = dict(model.named_parameters())
        values = torch.autograd.grad((out * dout).sum(), [*inputs, *parameters.values()])
        grads.append(dict(zip(["sample", "text", *parameters], values, strict=True)))
    for key, expected in grads[0].items():
        torch.testing.assert_close(grads[1][key], expected, rtol=1e-8, atol=1e-10, msg=key)


def test_gradients_reach_what_the_attention_argument_closes_over():
    unet = make_pair(SD15)[1].requires_grad_(False)
    sample, text, _ = make_inputs(SD15)
    weight = torch.ones((), requires_grad=True)
    out = unet(
        sample, 9, None, attention=lambda _, q, module, *hw: module.attend_to(text, q) * weight
    )
    out.square().mean().backward()
    assert weight.grad is not None
    assert weight.grad != 0


@pytest.mark.parametrize("name", ["sd15", "xl"])
def test_channels_last_stays_channels_last_and_changes_nothing(name):
    config = CONFIGS[name]
    unet = make_pair(config)[1]
    sample, text, added = make_inputs(config, size=(9, 13))
    expected = unet(sample, 4, text, added)
    assert expected.is_contiguous()
    unet.to(memory_format=torch.channels_last)
    out = unet(sample.to(memory_format=torch.channels_last), 4, text, added)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_unet_compiles_in_one_graph_with_an_attention_argument():
    two_levels = {
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
    }
    unet = make_pair(SD15 | two_levels)[1]
    sample, text, _ = make_inputs(SD15)

    def attention(name, q, module, height, width):
        return module.attend_to(text, q)

    compiled = torch.compile(
        lambda x: unet(x, 9, None, attention=attention), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(sample), unet(sample, 9, text))


def test_dropout_acts_in_training_alone():
    unet = UNet(UNetConfig.from_dict(SD15 | {"dropout": 0.5}))
    sample, text, _ = make_inputs(SD15)
    assert not torch.equal(unet(sample, 1, text), unet(sample, 1, text))
    unet.eval()
    assert torch.equal(unet(sample, 1, text), unet(sample, 1, text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": torch.zeros(2, 4, 8)}, r"sample must have shape \(batch, 4, height, width\)"),
        ({"sample": torch.zeros(2, 3, 8, 8)}, r"sample must .*got \(2, 3, 8, 8\)"),
        ({"timestep": torch.zeros(3)}, r"timestep must have shape \(2\), got \(3,\)"),
        ({"text": None}, r"encoder_hidden_states must have shape \(2, seqlen_k, 40\), got None"),
        ({"text": torch.zeros(2, 7, 41)}, r"encoder_hidden_states must .*got \(2, 7, 41\)"),
        ({"text": torch.zeros(1, 7, 40)}, r"encoder_hidden_states must .*got \(1, 7, 40\)"),
        ({"added": None}, r"time_ids in added_cond_kwargs must .*got None"),
        (
            {"added": {"time_ids": torch.zeros(2, 6)}},
            r"text_embeds in added_cond_kwargs must have shape \(2, 20\), got None",
        ),
        (
            {"added": {"time_ids": torch.zeros(2, 5), "text_embeds": torch.zeros(2, 20)}},
            r"text_embeds in added_cond_kwargs must have shape \(2, 28\), got \(2, 20\)",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    unet = UNet(UNetConfig.from_dict(XL))
    sample, text, added = make_inputs(XL)
    arguments = {"sample": sample, "timestep": 1, "text": text, "added": added} | change
    with pytest.raises(ValueError, match=message):
        unet(*arguments.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet3DConditionModel"}, "_class_name must be 'UNet2DConditionModel'"),
        ({"act_fn": "gelu"}, "act_fn must be 'silu' or 'swish' .*got 'gelu'"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type must be None or 'text_time'"),
        ({"attention_type": "gated"}, "attention_type must be 'default'"),
        ({"class_embed_type": "timestep"}, "class_embed_type must be None"),
        ({"class_embeddings_concat": True}, "class_embeddings_concat must be False"),
        ({"conv_in_kernel": 1}, "conv_in_kernel must be 3"),
        ({"conv_out_kernel": 1}, "conv_out_kernel must be 3"),
        ({"cross_attention_norm": "layer_norm"}, "cross_attention_norm must be None"),
        ({"downsample_padding": 0}, "downsample_padding must be 1"),
        ({"dual_cross_attention": True}, "dual_cross_attention must be False"),
        ({"encoder_hid_dim": 8}, "encoder_hid_dim must be None"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type must be None"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type must be 'UNetMidBlock2DCrossAttn'"),
        ({"mid_block_type": None}, "mid_block_type must be .*got None"),
        ({"num_class_embeds": 10}, "num_class_embeds must be None"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift must be 'default'"),
        (
            {"reverse_transformer_layers_per_block": [[1]]},
            "reverse_transformer_layers_per_block must be None",
        ),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim must be None"),
        ({"time_embedding_act_fn": "silu"}, "time_embedding_act_fn must be None"),
        ({"time_embedding_dim": 64}, "time_embedding_dim must be None"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type must be 'positional'"),
        ({"timestep_post_act": "silu"}, "timestep_post_act must be None"),
        (
            {"down_block_types": ["AttnDownBlock2D"] * 4},
            "down_block_types must be CrossAttnDownBlock2D or DownBlock2D for each of 4 levels",
        ),
        ({"up_block_types": ["UpBlock2D"] * 3}, "up_block_types must .*for each of 4 levels"),
        ({"layers_per_block": 0}, "layers_per_block must be a positive int"),
        ({"transformer_layers_per_block": [[1, 1], 1, 1, 1]}, "transformer_layers_per_block must"),
        ({"attention_head_dim": [8, 8]}, "num_attention_heads must .*for each of 4 levels"),
        ({"attention_head_dim": 5}, r"attention_head_dim \(the number of heads\) must divide 16"),
        ({"norm_num_groups": None}, "norm_num_groups must divide 16 channels, got None"),
        ({"norm_num_groups": 5}, "norm_num_groups must divide 16 channels, got 5"),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 8},
            "projection_class_embeddings_input_dim must be given with text_time",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_configuration_that_is_not_implemented_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict(SD15 | change)


def test_config_defaults_are_those_of_diffusers():
    ours = UNetConfig.from_dict({"norm_eps": None})
    signature = inspect.signature(UNet2DConditionModel.__init__).parameters
    expected = {name: p.default for name, p in signature.items() if hasattr(ours, name)}
    expected["num_attention_heads"] = signature["attention_head_dim"].default
    for name, default in expected.items():
        ours_default = getattr(ours, name)
        is_one_for_all = isinstance(ours_default, tuple) and not isinstance(default, tuple)
        assert ours_default == ((default,) * 4 if is_one_for_all else default or ours_default), name
        assert default is not None or not ours_default, name


def test_num_attention_heads_goes_before_attention_head_dim():
    config = UNetConfig.from_dict(SD15 | {"num_attention_heads": [2, 4, 8, 8]})
    assert config.num_attention_heads == (2, 4, 8, 8)
    assert UNetConfig.from_dict(SD15).num_attention_heads == (4,) * 4


@pytest.mark.parametrize(
    ("config", "parameters", "layers"),
    [
        ({"cross_attention_dim": 768}, 859_520_964, 16),
        (
            {
                "cross_attention_dim": 1024,
                "attention_head_dim": [5, 10, 20, 20],
                "use_linear_projection": True,
                "only_cross_attention": False,
                "num_class_embeds": None,
                "upcast_attention": True,
            },
            865_910_724,
            16,
        ),
        (
            {
                "cross_attention_dim": 2048,
                "attention_head_dim": [5, 10, 20],
                "use_linear_projection": True,
                "block_out_channels": [320, 640, 1280],
                "down_block_types": list(XL["down_block_types"]),
                "up_block_types": list(XL["up_block_types"]),
                "transformer_layers_per_block": [1, 2, 10],
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "upcast_attention": None,
                "mid_block_only_cross_attention": None,
            },
            2_567_463_684,
            70,
        ),
    ],
    ids=["sd15", "sd21", "xl"],
)
def test_released_architecture_has_the_parameters_of_diffusers(config, parameters, layers):
    with torch.device("meta"):
        ours, theirs = UNet(UNetConfig.from_dict(config)), UNet2DConditionModel(**config)
    assert sum(p.numel() for p in ours.parameters()) == parameters
    assert len(cross_attention_layers(ours)) == layers
    assert shapes(ours) == shapes(theirs)
