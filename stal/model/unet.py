"""The UNet of Stable Diffusion 1.x, 2.x and XL.

A block is a row of resnets, each followed by a transformer if its level attends to the text. Going
down, every level ends in half its resolution, and all results are kept; going up, every resnet also
reads one of them, the last one first. `UNet.forward` shows the whole of it. Attribute names are
diffusers' state-dict keys.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
arXiv 2112.10752; the text-time embedding: Podell et al., "SDXL", arXiv 2307.01952.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpoint_call

from stal.model.unet_config import UNetConfig

# (layer name, q, attention module, height, width) -> the attention's result, shaped like q
AttentionFunction = Callable[[str, Tensor, "Attention", int, int], Tensor]


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def time_mlp(dim: int, out_dim: int) -> nn.Sequential:
    first, second = nn.Linear(dim, out_dim), nn.Linear(out_dim, out_dim)
    return named(linear_1=first, act=nn.SiLU(), linear_2=second)


def timestep_embedding(timesteps: Tensor, dim: int, *, cos_first: bool, shift: int) -> Tensor:
    """emb[n] = (cos(t[n] w), sin(t[n] w)) with w[i] = 10000 ** (-i / (dim // 2 - shift)).

    The sine comes first unless cos_first. timesteps (n,) of any dtype -> (n, dim) float32.
    """
    half = dim // 2
    i = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * i / (half - shift))
    parts = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return F.pad(torch.cat(parts, dim=-1), (0, dim % 2))


class Resnet(nn.Module):
    """(x + conv2(silu(norm2(conv1(silu(norm1(x))) + time_emb_proj(temb))))) / scale.

    temb (batch, 4 * block_out_channels[0]) is the activated embedding of the time step.
    """

    def __init__(self, config: UNetConfig, in_channels: int, channels: int, scale: float) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(4 * config.block_out_channels[0], channels)
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        same = in_channels == channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1)
        self.scale = scale

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(temb)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        x = self.conv_shortcut(x) + h
        return x if self.scale == 1 else x / self.scale


class Attention(nn.Module):
    """Multi-head attention: of the pixels to each other, or to a text of width context_dim."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.name = ""  # the module's path, which the UNet sets
        self.is_cross = context_dim is not None
        self.heads = heads
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))

    def split_heads(self, x: Tensor) -> Tensor:
        """(batch, seqlen, heads * head_dim) -> (batch, heads, seqlen, head_dim), a view."""
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def attend_to(self, context: Tensor, q: Tensor) -> Tensor:
        """softmax(scale q k^T) v, k and v of context (batch, seqlen_k, width); shaped like q."""
        k, v = self.split_heads(self.to_k(context)), self.split_heads(self.to_v(context))
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)

    def forward(self, x: Tensor, attend: AttentionFunction, height: int, width: int) -> Tensor:
        q = self.split_heads(self.to_q(x))
        out = attend(self.name, q, self, height, width) if self.is_cross else self.attend_to(x, q)
        if out.shape != q.shape:
            rule = f"return q's shape {tuple(q.shape)} at {self.name}"
            raise ValueError(f"attention must {rule}, got {tuple(out.shape)}")
        return self.to_out(out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Attention, attention to the text and a feed-forward net, over x (batch, pixels, dim)."""

    def __init__(self, dim: int, heads: int, context_dim: int, only_cross: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, context_dim if only_cross else None)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        # The keys count a dropout between the two layers.
        net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))
        self.ff = named(net=net)

    def forward(self, x: Tensor, attend: AttentionFunction, height: int, width: int) -> Tensor:
        x = x + self.attn1(self.norm1(x), attend, height, width)
        x = x + self.attn2(self.norm2(x), attend, height, width)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """x (batch, channels, height, width) plus what transformer blocks make of its pixels."""

    def __init__(self, config: UNetConfig, level: int, only_cross: bool) -> None:
        super().__init__()
        dim, heads = config.block_out_channels[level], config.num_attention_heads[level]
        context_dim = config.cross_attention_dim[level]
        self.linear = config.use_linear_projection
        self.norm = nn.GroupNorm(config.norm_num_groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim) if self.linear else nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, heads, context_dim, only_cross)
            for _ in range(config.transformer_layers_per_block[level])
        )
        self.proj_out = nn.Linear(dim, dim) if self.linear else nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, attend: AttentionFunction) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(x) if self.linear else self.proj_in(self.norm(x))
        h = h.permute(0, 2, 3, 1).flatten(1, 2)  # (batch, height * width, channels)
        h = self.proj_in(h) if self.linear else h
        for block in self.transformer_blocks:
            h = block(h, attend, height, width)
        h = self.proj_out(h) if self.linear else h
        h = h.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        # x comes first because a sum takes the memory format of its first operand.
        return x + (h if self.linear else self.proj_out(h))


class Block(nn.Module):
    """Resnets, each followed by a transformer if `attends`.

    The middle block ends in a resnet, and keeps its self-attention whatever only_cross_attention
    says. Blocks on the way down and up may also have `downsamplers` or `upsamplers`.
    """

    downsamplers: nn.ModuleList
    upsamplers: nn.ModuleList

    def __init__(
        self, config: UNetConfig, level: int, inputs: list[int], attends: bool, is_mid: bool = False
    ) -> None:
        super().__init__()
        channels = config.block_out_channels[level]
        scale = config.mid_block_scale_factor if is_mid else 1.0
        only_cross = config.only_cross_attention[level] and not is_mid
        transformers = (len(inputs) - is_mid) * attends
        self.resnets = nn.ModuleList(Resnet(config, c, channels, scale) for c in inputs)
        self.attentions = nn.ModuleList(
            Transformer(config, level, only_cross) for _ in range(transformers)
        )

    def layer(self, i: int, x: Tensor, temb: Tensor, attend: AttentionFunction) -> Tensor:
        x = self.resnets[i](x, temb)
        return self.attentions[i](x, attend) if i < len(self.attentions) else x


class UNet(nn.Module):
    """Predicts the noise or v of noisy latents, as the model was trained to.

    `state_dict()` can be exchanged with `diffusers.UNet2DConditionModel` as it is.

    gradient_checkpointing: keep the input of each resnet with its transformer alone, and compute
        what is between again on the way back. `attention` is then called a second time there and
        must do the same.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        channels, levels = config.block_out_channels, range(len(config.block_out_channels))
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = time_mlp(channels[0], 4 * channels[0])
        self.add_embedding: nn.Sequential | None = None
        if config.addition_embed_type == "text_time":
            width = config.projection_class_embeddings_input_dim
            self.add_embedding = time_mlp(width, 4 * channels[0])

        skips = [channels[0]]  # the channels of each result that is kept on the way down
        self.down_blocks = nn.ModuleList()
        for level, block_type in enumerate(config.down_block_types):
            c = channels[level]
            inputs = [skips[-1]] + [c] * (config.layers_per_block[level] - 1)
            block = Block(config, level, inputs, block_type.startswith("CrossAttn"))
            skips += [c] * len(inputs)
            if level != levels[-1]:
                conv = nn.Conv2d(c, c, 3, stride=2, padding=1)
                block.downsamplers = nn.ModuleList([named(conv=conv)])
                skips += [c]
            self.down_blocks.append(block)

        below = channels[-1]
        self.mid_block = Block(config, levels[-1], [below, below], attends=True, is_mid=True)

        self.up_blocks = nn.ModuleList()
        for level, block_type in zip(reversed(levels), config.up_block_types, strict=True):
            c = channels[level]
            inputs = [below] + [c] * config.layers_per_block[level]
            inputs = [channels_in + skips.pop() for channels_in in inputs]
            block = Block(config, level, inputs, block_type.startswith("CrossAttn"))
            if level != 0:
                block.upsamplers = nn.ModuleList([named(conv=nn.Conv2d(c, c, 3, padding=1))])
            self.up_blocks.append(block)
            below = c

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, below, config.norm_eps)
        self.conv_out = nn.Conv2d(below, config.out_channels, 3, padding=1)
        for name, module in self.named_modules():
            if isinstance(module, Attention):
                module.name = name

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None,
        *,
        attention: AttentionFunction | None = None,
    ) -> Tensor:
        """Returns the prediction, (batch, out_channels, height, width).

        sample                  (batch, in_channels, height, width), any size, the weights' dtype
        timestep                a number, () or (batch,), in training steps
        encoder_hidden_states   (batch, seqlen_k, cross_attention_dim), the encoded prompt; None is
                                allowed with attention, which then knows the prompts
        added_cond_kwargs       of XL: text_embeds (batch, width) and time_ids (batch, 6)
        attention               called at every cross-attention layer (each attn2, and attn1 where
                                only_cross_attention is set; self-attention is never asked) as
                                attention(name, q, module, height, width). name is the module's
                                path, "down_blocks.0.attentions.1.transformer_blocks.0.attn2"; q
                                (batch, heads, height * width, head_dim), a view of the projection,
                                is not scaled yet; module has to_k, to_v, heads, head_dim, scale.
                                It returns a tensor shaped like q, to which the UNet applies
                                to_out. None is scaled dot-product attention to
                                encoder_hidden_states.

        Raises ValueError if an argument is missing or has the wrong shape.
        """
        config = self.config
        _expect("sample", sample, "batch", config.in_channels, "height", "width")
        batch, t = len(sample), _times(timestep, sample)
        if t.numel() != 1:
            _expect("timestep", t, batch)
        if attention is None:
            # The middle always attends, and there is one text for all levels.
            width = config.cross_attention_dim[-1]
            _expect("encoder_hidden_states", encoder_hidden_states, batch, "seqlen_k", width)

        def plain(name: str, q: Tensor, module: Attention, height: int, width: int) -> Tensor:
            return module.attend_to(cast(Tensor, encoder_hidden_states), q)

        attend = attention or plain

        def run(block: Block, i: int, x: Tensor) -> Tensor:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return checkpoint_call(block.layer, i, x, temb, attend, use_reentrant=False)
            return block.layer(i, x, temb, attend)

        temb = self._embed(t.reshape(-1).expand(batch), added_cond_kwargs or {}, sample.dtype)
        x = self.conv_in(2 * sample - 1 if config.center_input_sample else sample)
        skips = [x]
        for block in cast("list[Block]", self.down_blocks):
            for i in range(len(block.resnets)):
                x = run(block, i, x)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0](x)
                skips.append(x)
        for i in range(len(self.mid_block.resnets)):
            x = run(self.mid_block, i, x)
        for block in cast("list[Block]", self.up_blocks):
            for i in range(len(block.resnets)):
                x = run(block, i, torch.cat((x, skips.pop()), dim=1))
            if hasattr(block, "upsamplers"):
                # An odd size was halved rounding up, so that it is not simply doubled.
                x = F.interpolate(x, size=skips[-1].shape[-2:], mode="nearest")
                x = block.upsamplers[0](x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def _embed(self, t: Tensor, added: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """(batch, 4 * block_out_channels[0]): time steps (batch,) and what XL is told besides."""
        config, batch = self.config, len(t)

        def embed(numbers: Tensor, dim: int) -> Tensor:
            order, shift = config.flip_sin_to_cos, config.freq_shift
            return timestep_embedding(numbers, dim, cos_first=order, shift=shift).to(dtype)

        temb = self.time_embedding(embed(t, config.block_out_channels[0]))
        if self.add_embedding is not None:
            _expect("time_ids in added_cond_kwargs", added.get("time_ids"), batch, "numbers")
            sizes = embed(added["time_ids"].flatten(), config.addition_time_embed_dim)
            sizes = sizes.view(batch, -1)
            width = config.projection_class_embeddings_input_dim - sizes.shape[1]
            _expect("text_embeds in added_cond_kwargs", added.get("text_embeds"), batch, width)
            extra = torch.cat((added["text_embeds"], sizes), dim=1).to(temb.dtype)
            temb = temb + self.add_embedding(extra)
        return F.silu(temb)


def _times(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """The time steps where the sample is; a number in float64, which holds every integer."""
    if isinstance(timestep, Tensor):
        return timestep.to(sample.device)
    return torch.tensor(timestep, dtype=torch.float64, device=sample.device)


def _expect(name: str, tensor: Tensor | None, *shape: int | str) -> None:
    """Raises ValueError unless the tensor has this shape, where a str stands for any size."""
    got = None if tensor is None else tuple(tensor.shape)
    sizes = shape if got is None or len(got) != len(shape) else got
    if got != tuple(g if isinstance(s, str) else s for s, g in zip(shape, sizes, strict=True)):
        raise ValueError(f"{name} must have shape ({', '.join(map(str, shape))}), got {got}")
