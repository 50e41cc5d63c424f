"""A module of regional cross-attention that is trained as any other, the prompts' weights too.

    python examples/plain_module.py

Its gradients, of the projections and of the weights, equal those of a loop over the prompts.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stal_kernels import blended_attention


class RegionalCrossAttention(nn.Module):
    """to_out(sum_p strength_p region_p attention(x, prompt_p))"""

    def __init__(self, width: int, prompt_width: int, heads: int, prompts: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(prompt_width, width, bias=False)
        self.to_v = nn.Linear(prompt_width, width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.strength = nn.Parameter(torch.ones(prompts))

    def forward(
        self,
        x: Tensor,  # (batch, pixels, width)
        prompts: Tensor,  # (batch, prompts, tokens, prompt_width)
        region: Tensor,  # (batch, prompts, pixels), bool
        attend: Callable[..., Tensor] = blended_attention,
    ) -> Tensor:
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.to_k(prompts).unflatten(-1, (self.heads, -1)).transpose(2, 3)
        v = self.to_v(prompts).unflatten(-1, (self.heads, -1)).transpose(2, 3)
        weight = self.strength[:, None].expand(region.shape)
        return self.to_out(attend(q, k, v, weight, region=region).transpose(1, 2).flatten(2))


def loop(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, *, region: Tensor) -> Tensor:
    """blended_attention in plain PyTorch."""
    each = [F.scaled_dot_product_attention(q, k[:, p], v[:, p]) for p in range(k.shape[1])]
    return torch.einsum("pbhnd,bpn->bhnd", torch.stack(each), weight * region)


torch.manual_seed(0)
x, prompts, region = torch.randn(2, 60, 32), torch.randn(2, 3, 7, 24), torch.rand(2, 3, 60) > 0.4
module, teacher = (RegionalCrossAttention(32, 24, heads=4, prompts=3) for _ in range(2))
target = teacher(x, prompts, region).detach()
parameters = list(module.parameters())
grads = torch.autograd.grad(F.mse_loss(module(x, prompts, region), target), parameters)
same = torch.autograd.grad(F.mse_loss(module(x, prompts, region, loop), target), parameters)
torch.testing.assert_close(grads, same, rtol=1e-5, atol=1e-7)
assert all(grad.any() for grad in grads)

optimizer, losses = torch.optim.Adam(parameters, lr=0.01), []
for _ in range(20):
    loss = F.mse_loss(module(x, prompts, region), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0] / 4, losses
print(f"all gradients as of the loop; loss {losses[0]:.3f} -> {losses[-1]:.3f} in 20 steps")
