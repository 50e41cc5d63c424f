"""Regional cross-attention in a diffusers UNet: an attention processor of one's own.

    python examples/diffusers_processor.py

One region over everything gives the plain prediction; a layer is the blend of its plain outputs;
afterwards the UNet has its own processors again.
"""

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from stal_kernels import blended_attention


class RegionalProcessor:
    """Cross-attention to prompts (batch, prompts, tokens, width), which take the place of
    encoder_hidden_states, blended by weight (batch, prompts, height, width), float32, of the
    latents: 0 is where a prompt is absent. The unconditional half of a batch has its own prompts.
    """

    def __init__(self, prompts: Tensor, weight: Tensor) -> None:
        self.prompts, self.weight = prompts, weight

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            raise NotImplementedError("attention_mask must be None: give prompts without padding")
        q = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        k = attn.to_k(self.prompts).unflatten(-1, (attn.heads, -1)).transpose(2, 3)
        v = attn.to_v(self.prompts).unflatten(-1, (attn.heads, -1)).transpose(2, 3)
        height, width = self.weight.shape[-2:]
        while height * width > q.shape[2]:  # each level of the UNet halves the sides, rounding up
            height, width = (height + 1) // 2, (width + 1) // 2
        weight = F.adaptive_avg_pool2d(self.weight, (height, width)).flatten(2)
        out = blended_attention(q, k, v, weight, region=weight != 0)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def predict(unet: UNet2DConditionModel, x: Tensor, prompts: Tensor, weight: Tensor) -> Tensor:
    """The prediction with regions; the UNet's own processors are back afterwards."""
    layers = [m for m in unet.modules() if isinstance(m, Attention) and m.is_cross_attention]
    own = [layer.get_processor() for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(RegionalProcessor(prompts, weight))
        return unet(x, 500, prompts[:, 0]).sample
    finally:
        for layer, processor in zip(layers, own, strict=True):
            layer.set_processor(processor)


torch.manual_seed(0)
unet = UNet2DConditionModel(
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=32,
    attention_head_dim=4,  # which diffusers takes as the number of heads
    norm_num_groups=8,
).eval()
x, prompts = torch.randn(2, 4, 10, 15), torch.randn(2, 3, 7, 32)  # unconditional, conditional
with torch.no_grad():
    plain = [unet(x, 500, prompts[:, p]).sample for p in range(3)]

    whole = torch.zeros(2, 3, 10, 15)
    whole[:, 1] = 1
    torch.testing.assert_close(predict(unet, x, prompts, whole), plain[1])

    layout = torch.zeros(2, 3, 10, 15)
    layout[0, 0] = 1  # the unconditional half has one prompt
    layout[1, 0], layout[1, 1, :, :7], layout[1, 2, :, 7:] = 0.3, 0.7, 0.7
    regional = predict(unet, x, prompts, layout)
    torch.testing.assert_close(regional[0], plain[0][0])
    assert torch.equal(unet(x, 500, prompts[:, 2]).sample, plain[2])

    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    h = torch.randn(2, 150, 32)
    parts = torch.stack([layer(h, prompts[:, p]) for p in range(3)], dim=1)
    layer.set_processor(RegionalProcessor(prompts, layout))
    torch.testing.assert_close(layer(h), (parts * layout.flatten(2)[..., None]).sum(1))
changed = (regional[1] - plain[0][1]).square().mean().sqrt()
print(f"one region over everything is plain, two halves move the prediction by {changed:.3f}")
