"""Regional attention in a diffusion transformer: patches, adaLN, self- and cross-attention.

    python examples/dit.py

With one prompt everywhere it draws what the plain transformer draws. The weight of a token is the
mean over its patch, so regions need not end where patches do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stal_kernels import blended_attention


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.to_qkv, self.self_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def split(self, x: Tensor) -> Tensor:
        """(..., tokens, width) -> (..., heads, tokens, head_dim)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def forward(self, x: Tensor, t: Tensor, prompts: Tensor, weight: Tensor | None) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(t)[:, None].chunk(6, 2)
        q, k, v = self.split(self.to_qkv(self.norm(x) * (1 + scale) + shift)).chunk(3, -1)
        a = F.scaled_dot_product_attention(q, k, v)
        x = x + gate * self.self_out(a.transpose(1, 2).flatten(2))

        q = self.split(self.to_q(self.norm(x)))
        k, v = self.split(self.to_kv(prompts)).chunk(2, -1)
        if weight is None:  # the plain model, which knows the first prompt alone
            a = F.scaled_dot_product_attention(q, k[:, 0], v[:, 0])
        else:
            a = blended_attention(q, k, v, weight, region=weight != 0)
        x = x + self.cross_out(a.transpose(1, 2).flatten(2))
        return x + mlp_gate * self.mlp(self.norm(x) * (1 + mlp_scale) + mlp_shift)


class DiT(nn.Module):
    """The velocity of x (batch, 4, height, width) at time t (batch,).

    prompts are (batch, prompts, tokens, width), weight (batch, prompts, height, width) is 0 where
    a prompt is absent.
    """

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 2, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(4, width, patch, patch)
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.position = nn.Linear(2, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, 4 * patch**2)

    def forward(self, x: Tensor, t: Tensor, prompts: Tensor, weight: Tensor | None) -> Tensor:
        grid = self.embed(x)
        rows, columns = grid.shape[2:]
        sides = (torch.linspace(-1, 1, side).to(x) for side in (rows, columns))
        x = grid.flatten(2).mT + self.position(torch.cartesian_prod(*sides))
        if weight is not None:  # a token is a patch, row by row
            weight = F.avg_pool2d(weight, self.patch).flatten(2)
        for block in self.blocks:
            x = block(x, self.time(t[:, None]), prompts, weight)
        return F.pixel_shuffle(self.out(x).mT.unflatten(2, (rows, columns)), self.patch)


def draw(model: DiT, x: Tensor, prompts: Tensor, weight: Tensor | None, steps: int = 4) -> Tensor:
    """Euler steps of the rectified flow from noise at t = 1 to a picture at t = 0."""
    for step in range(steps):
        x = x - model(x, x.new_full((len(x),), 1 - step / steps), prompts, weight) / steps
    return x


torch.manual_seed(0)
model, x, prompts = DiT(), torch.randn(1, 4, 12, 20), torch.randn(1, 3, 7, 64)
weight = torch.zeros(1, 3, 12, 20)
weight[:, 0] = 1
with torch.no_grad():
    plain = draw(model, x, prompts, None)
    torch.testing.assert_close(draw(model, x, prompts, weight), plain)

    weight[:, 0], weight[:, 1, 2:8, 2:10], weight[:, 2, 4:, 12:] = 0.4, 0.6, 0.6
    regional = draw(model, x, prompts, weight)
    changed = (regional - plain).square().mean().sqrt()
    assert changed > 1e-2, changed

    # In one block, before self-attention spreads it, a prompt acts in its own region alone.
    other, shallow = prompts.clone(), DiT(depth=1)
    other[:, 1] = torch.randn(7, 64)
    t = torch.ones(1)
    moved = shallow(x, t, prompts, weight) != shallow(x, t, other, weight)
    assert torch.equal(moved.any(1), weight[:, 1] > 0)
print(f"4 Euler steps of 12 x 20: one prompt as plain, three regions move it by {changed:.2f}")
