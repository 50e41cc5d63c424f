"""One table of cases and one comparison, for the tests and benchmarks of every backend.

A result is right when its error against float64 is at most twice the error that plain PyTorch
makes in the same dtype on the same inputs. The rule is FlashAttention's; the error here is the
root mean square, since the largest error of a small tensor is a matter of luck, and beside it no
single error may exceed four times plain PyTorch's largest. Plain PyTorch is `plain_attention`
below, batched matrix products and a softmax, with torch's own gradients. Whether torch computes
float32 products as tf32 depends on their sizes, so "plain tf32" rounds their factors itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stal_kernels.interface import blended_attention, blended_attention_ragged, pack, plan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "projection", "expanded", "sliced")
REGIONS = (None, "blobs", "disjoint", "bands", "global", "boxes", "ellipses", "empty")
Box = tuple[float, float, float, float]  # (x0, y0, x1, y1), fractions of the image


@dataclass(frozen=True)
class Case:
    """Sizes of one call. `repr` is its readable id."""

    batch: int = 1
    heads: int = 2
    seqlen_q: int = 64
    seqlen_k: int = 77
    head_dim: int = 40
    prompts: int = 2
    # "contiguous"; "projection": (batch, seqlen, heads, head_dim) seen transposed;
    # "expanded": one set of keys and weights for all batch elements and rows;
    # "sliced": every second row of larger tensors.
    layout: str = "contiguous"
    # None; "blobs": random half; "disjoint": one prompt a row, in strips of consecutive rows;
    # "global": the first prompt and one of the others. In rows that are the pixels of an image, as
    # square as can be: "bands": one prompt a pixel, in vertical bands; "boxes", "ellipses": the
    # first prompt, and each of the others in a box, or in the ellipse inside it. "empty": the last
    # prompt nowhere.
    region: str | None = None
    ragged: bool = False
    scale: float | None = None
    # One for each prompt but the first; () for "boxes": those of an even grid.
    boxes: tuple[Box, ...] = ()
    planned: bool = False  # whether the call is given a plan of its region

    def __post_init__(self) -> None:
        if self.planned and self.region is None:
            raise ValueError("planned must come with a region, got it alone")
        for name, known in (("layout", LAYOUTS), ("region", REGIONS)):
            if getattr(self, name) not in known:
                names = ", ".join(map(str, known))
                raise ValueError(f"{name} must be one of {names}, got {getattr(self, name)!r}")
        needs, takes = self.region == "ellipses", self.region in ("boxes", "ellipses")
        fit = takes and len(self.boxes) == self.prompts - 1 if self.boxes else not needs
        if not fit:
            raise ValueError(
                "boxes must be one for each prompt but the first where the region is boxes or "
                f"ellipses, got {len(self.boxes)} for {self.prompts} prompts of {self.region!r}"
            )

    def __repr__(self) -> str:
        sizes = (
            f"b{self.batch}-h{self.heads}-q{self.seqlen_q}-k{self.seqlen_k}"
            f"-d{self.head_dim}-p{self.prompts}"
        )
        marks = [self.layout] if self.layout != "contiguous" else []
        marks += [self.region] if self.region else []
        marks += ["placed"] if self.boxes else []
        marks += ["ragged"] if self.ragged else []
        marks += [f"scale{self.scale:g}"] if self.scale is not None else []
        marks += ["planned"] if self.planned else []
        return "-".join([sizes, *marks])


_CASES = (
    # Stable Diffusion: head_dim by resolution.
    Case(heads=3, seqlen_q=257, head_dim=40, prompts=3),
    Case(heads=2, seqlen_q=144, head_dim=80, prompts=2),
    Case(heads=2, seqlen_q=64, head_dim=160, prompts=3),
    Case(heads=3, seqlen_q=96, head_dim=64, prompts=5),
    Case(batch=2, seqlen_q=49, head_dim=128, prompts=1),
    # Text encoders with more tokens.
    Case(seqlen_q=33, seqlen_k=120, head_dim=72),
    Case(seqlen_q=33, seqlen_k=128, head_dim=64),
    Case(seqlen_q=50, seqlen_k=129, head_dim=64),
    Case(seqlen_q=35, seqlen_k=300, head_dim=72, prompts=3),
    Case(seqlen_q=50, seqlen_k=256, head_dim=64, prompts=1),
    Case(seqlen_q=34, seqlen_k=300, head_dim=112, prompts=2, layout="projection"),
    Case(seqlen_q=40, seqlen_k=333, head_dim=88, prompts=2),
    Case(heads=1, seqlen_q=35, seqlen_k=512, head_dim=128, prompts=2),
    Case(heads=1, seqlen_q=20, seqlen_k=1024, head_dim=128, prompts=2),
    # Odd and smallest sizes.
    Case(heads=1, seqlen_q=1, seqlen_k=1, head_dim=8, prompts=1),
    Case(heads=5, seqlen_q=3, seqlen_k=2, head_dim=16, prompts=7),
    Case(heads=1, seqlen_q=17, seqlen_k=76, head_dim=24, prompts=16),
    Case(batch=3, heads=1, seqlen_q=31, seqlen_k=78, head_dim=56, prompts=2),
    Case(heads=1, seqlen_q=47, seqlen_k=5, head_dim=256, prompts=2),
    Case(seqlen_q=65, seqlen_k=13, head_dim=48, prompts=2, scale=0.5),
    Case(seqlen_q=20, seqlen_k=9, head_dim=32, prompts=2, scale=-0.3),
    # Layouts.
    Case(batch=2, heads=3, seqlen_q=63, layout="projection"),
    Case(batch=2, heads=2, seqlen_q=40, head_dim=64, prompts=3, layout="expanded"),
    Case(batch=2, heads=2, seqlen_q=37, head_dim=80, prompts=2, layout="sliced"),
    # Regions.
    Case(batch=2, heads=2, seqlen_q=130, prompts=4, region="blobs"),
    Case(heads=2, seqlen_q=256, head_dim=64, prompts=4, region="disjoint"),
    Case(batch=2, heads=1, seqlen_q=50, head_dim=40, prompts=2, region="empty", layout="sliced"),
    Case(batch=2, heads=1, seqlen_q=70, head_dim=80, prompts=3, region="blobs"),
    Case(heads=1, seqlen_q=64, head_dim=160, prompts=3, region="global"),
    Case(batch=2, heads=2, seqlen_q=400, seqlen_k=16, prompts=5, region="boxes"),
    Case(heads=1, seqlen_q=256, seqlen_k=256, head_dim=64, prompts=4, region="boxes"),
    Case(heads=2, seqlen_q=256, head_dim=64, prompts=3, region="bands"),
    Case(
        heads=1,
        seqlen_q=256,
        prompts=3,
        region="ellipses",
        boxes=((0.0, 0.1, 0.55, 0.7), (0.4, 0.3, 0.95, 1.0)),
    ),
    # Ragged: repeated rows, elements without entries, unused rows, lengths from 0.
    Case(batch=4, heads=2, seqlen_q=65, head_dim=40, prompts=3, ragged=True),
    Case(batch=3, heads=2, seqlen_q=48, seqlen_k=130, head_dim=64, region="blobs", ragged=True),
    Case(batch=2, heads=3, seqlen_q=31, seqlen_k=7, head_dim=96, ragged=True, layout="projection"),
    Case(batch=3, heads=1, seqlen_q=66, seqlen_k=120, head_dim=72, prompts=2, ragged=True),
)
CASES = (*_CASES, *(replace(case, planned=True) for case in _CASES if case.region))


@dataclass
class Example:
    """The tensors of one call, with the shapes of `blended_attention` or its ragged form.

    dout is as q. prompt_ids and offsets are None in the dense form; scale None: the default. plan
    is None unless the case is planned, packed before `with_pack`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    dout: Tensor
    prompt_ids: Tensor | None
    offsets: Tensor | None
    region: Tensor | None
    key_lengths: Tensor | None
    plan: tuple[Tensor, Tensor, Tensor] | None
    scale: float | None
    packed: tuple[Tensor, Tensor, Tensor] | None = None

    def with_pack(self, backend: str) -> "Example":
        """The same tensors with the pack of their keys and values for a backend."""
        return replace(self, packed=pack(self.k, self.v, self.key_lengths, backend=backend))

    def floats(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v, weight: what has gradients."""
        return self.q, self.k, self.v, self.weight

    def run(self, backend: str) -> Tensor:
        """The operator's output, as q; it checks values of indices on a GPU too."""
        if self.prompt_ids is None or self.offsets is None:
            return blended_attention(
                *self.floats(),
                region=self.region,
                plan=self.plan,
                packed=self.packed,
                scale=self.scale,
                backend=backend,
            )
        return blended_attention_ragged(
            *self.floats(),
            self.prompt_ids,
            self.offsets,
            region=self.region,
            key_lengths=self.key_lengths,
            plan=self.plan,
            packed=self.packed,
            scale=self.scale,
            validate=True,
            backend=backend,
        )

    def to(self, dtype: torch.dtype) -> "Example":
        """The same values in another dtype, each a leaf of its own, without a pack."""
        fields = {**self.__dict__, "packed": None}
        for name in ("q", "k", "v", "dout"):
            fields[name] = fields[name].detach().to(dtype).requires_grad_(name != "dout")
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        fields["weight"] = self.weight.detach().to(wide).requires_grad_()
        return Example(**fields)


def example(
    case: Case, dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0
) -> Example:
    """Random tensors of the sizes of a case; q, k, v and weight require gradients.

    Args:
        dtype: of q, k, v and dout; weight is float64 with float64, else float32.
        device: where they lie; they are drawn on the CPU, equal for equal seeds.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, heads, prompts = case.batch, case.heads, case.prompts

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def laid_out(x: Tensor, to: torch.dtype) -> Tensor:
        x = x.to(device=device, dtype=to)
        if case.layout == "projection" and x.dim() >= 4:
            x = x.transpose(-2, -3).contiguous().transpose(-2, -3)
        if case.layout == "sliced" and x.dim() >= 2:
            x = x.repeat_interleave(2, dim=-2)[..., ::2, :]
        return x

    def indices(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    leading: tuple[int, ...]
    keys: tuple[int, ...]
    prompt_ids = offsets = key_lengths = None
    if case.ragged:
        # Element b has b mod 3 entries, drawn from a table that is one row larger than needed.
        counts = [b % 3 for b in range(batch)]
        entries, table = sum(counts), prompts + 1
        bounds = [sum(counts[:b]) for b in range(batch + 1)]
        ids = torch.randint(prompts, (entries,), generator=generator).tolist()
        lengths = [case.seqlen_k * t // max(prompts - 1, 1) for t in range(prompts)]
        prompt_ids, offsets = indices(ids), indices(bounds)
        key_lengths = indices([*lengths, case.seqlen_k])
        leading, keys = (entries,), (table,)
    else:
        leading = keys = (batch, prompts)
    key_shape = (*keys, heads, case.seqlen_k, case.head_dim)
    q_shape = (batch, heads, case.seqlen_q, case.head_dim)
    q, dout = laid_out(normal(*q_shape), dtype), laid_out(normal(*q_shape), dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if case.layout == "expanded":
        k, v = (normal(1, *key_shape[1:]).to(device, dtype).expand(key_shape) for _ in range(2))
        weight = normal(1, prompts, 1).to(device, wide).expand(batch, prompts, case.seqlen_q)
    else:
        k, v = laid_out(normal(*key_shape), dtype), laid_out(normal(*key_shape), dtype)
        weight = laid_out(normal(*leading, case.seqlen_q), wide)

    region = None
    if case.region is not None:
        region = torch.rand(*leading, case.seqlen_q, generator=generator) < 0.5
        if case.region == "disjoint":
            owner = torch.arange(case.seqlen_q) * prompts // case.seqlen_q
            region = (owner == torch.arange(prompts)[:, None]).expand(*leading, case.seqlen_q)
        if case.region == "global":
            owner = 1 + torch.arange(case.seqlen_q) * (prompts - 1) // case.seqlen_q
            every = torch.arange(prompts)[:, None]
            region = ((owner == every) | (every == 0)).expand(*leading, case.seqlen_q)
        if case.region == "bands":
            width = math.isqrt(case.seqlen_q)
            owner = torch.arange(case.seqlen_q) % width * prompts // width
            region = (owner == torch.arange(prompts)[:, None]).expand(*leading, case.seqlen_q)
        if case.boxes:
            inside = _covered(case.seqlen_q, case.boxes, ellipses=case.region == "ellipses")
            everywhere = inside.new_ones(1, case.seqlen_q)
            region = torch.cat([everywhere, inside]).expand(*leading, case.seqlen_q)
        elif case.region == "boxes":
            region = _boxes(case.seqlen_q, prompts).expand(*leading, case.seqlen_q)
        if case.region == "empty":
            region[..., -1, :] = False
        region = region.to(device)
    made = None
    if region is not None and case.planned:
        made = plan(region, prompt_ids, offsets)
    for x in (q, k, v, weight):
        x.requires_grad_()
    others = prompt_ids, offsets, region, key_lengths, made, case.scale
    return Example(q, k, v, weight, dout, *others)


def _boxes(seqlen_q: int, prompts: int) -> Tensor:
    """(prompts, seqlen_q) bool: boxes in two columns, each 0.8 of its cell wide and high."""
    width = math.isqrt(seqlen_q)
    pixel = torch.arange(seqlen_q)
    y, x = pixel // width / (seqlen_q / width), pixel % width / width
    prompt = torch.arange(prompts)[:, None] - 1
    lines = max(prompts // 2, 1)
    inside = (x * 2 - prompt % 2 - 0.5).abs().lt(0.4) & (y * lines - prompt // 2 - 0.5).abs().lt(
        0.4
    )
    return inside | (prompt < 0)


def _covered(seqlen_q: int, boxes: tuple[Box, ...], *, ellipses: bool) -> Tensor:
    """(boxes, seqlen_q) bool: pixels of which a box, or the ellipse inside it, covers a part."""
    width = math.isqrt(seqlen_q)
    pixel = torch.arange(seqlen_q, dtype=torch.float64)
    left, top = pixel % width, (pixel / width).floor()
    # In pixels.
    scale = torch.tensor([width, seqlen_q / width] * 2, dtype=torch.float64)
    x0, y0, x1, y1 = (torch.tensor(boxes, dtype=torch.float64) * scale).T[:, :, None]
    inside = (left < x1) & (left + 1 > x0) & (top < y1) & (top + 1 > y0)
    if not ellipses:
        return inside

    def distance(low: Tensor, high: Tensor, first: Tensor) -> Tensor:
        """From the middle to the nearest point of a pixel; 1 at the sides of the box."""
        middle = (low + high) / 2
        nearest = torch.minimum(torch.maximum(middle, first), first + 1)
        return (nearest - middle) * 2 / (high - low)

    return inside & (distance(x0, x1, left) ** 2 + distance(y0, y1, top) ** 2 < 1)


class _Tf32Product(torch.autograd.Function):
    """a @ b in float32 of factors that are rounded to tf32 (10 bits of mantissa), gradients too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _tf32(a) @ _tf32(b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        grad = _tf32(grads[0])
        return grad @ _tf32(b).mT, _tf32(a).mT @ grad


def _tf32(x: Tensor) -> Tensor:
    return ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def plain_attention(
    e: Example, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> Tensor:
    """The formula as one would write it in PyTorch: batched, in the dtype of q throughout.

    Args:
        product: a @ b of two batches of matrices.

    Returns:
        (batch, heads, seqlen_q, head_dim), dtype of q.
    """
    q, k, v, weight = e.floats()
    batch, seqlen_k = q.shape[0], k.shape[-2]
    scale = q.shape[-1] ** -0.5 if e.scale is None else e.scale
    if e.prompt_ids is None or e.offsets is None:
        prompts = k.shape[1]
        k, v, weight = k.flatten(0, 1), v.flatten(0, 1), weight.flatten(0, 1)
        region = None if e.region is None else e.region.flatten(0, 1)
        owner = torch.arange(batch, device=q.device).repeat_interleave(prompts)
    else:
        ids, region = e.prompt_ids.long(), e.region
        k, v = k[ids], v[ids]
        owner = torch.arange(batch, device=q.device).repeat_interleave(e.offsets.diff())
    scores = product(q[owner], k.mT) * scale
    if region is not None:
        weight = weight * region
    if e.key_lengths is not None and e.prompt_ids is not None:
        length = e.key_lengths[e.prompt_ids.long()][:, None]
        weight = weight * (length > 0)
        absent = torch.arange(seqlen_k, device=q.device) >= length.clamp(min=1)
        scores = scores.masked_fill(absent[:, None, None], -torch.inf)
    out = product(scores.softmax(-1), v) * weight.to(q.dtype)[:, None, :, None]
    return torch.zeros_like(q).index_add(0, owner, out)


def results(e: Example, backend: str) -> dict[str, Tensor]:
    """out, dq, dk, dv and dweight, by name, each as its input (out as q).

    Args:
        backend: the operator's, or "plain" or "plain tf32" for `plain_attention`.
    """
    if backend.startswith("plain"):
        product = _Tf32Product.apply if backend == "plain tf32" else torch.matmul
        out = plain_attention(e, product)
    else:
        out = e.run(backend)
    gradients = torch.autograd.grad(out, e.floats(), e.dout)
    return dict(zip(("out", "dq", "dk", "dv", "dweight"), (out.detach(), *gradients), strict=True))


def assert_within_twice_plain(
    case: Case,
    backend: str,
    dtype: torch.dtype,
    *,
    device: str | torch.device = "cpu",
    draws: int = 3,
    plain: str = "plain",
) -> dict[str, float]:
    """Asserts the twice-eager rule for the output and all gradients of a backend.

    Errors are taken over several draws of a case. Plain PyTorch counts as no closer than the
    rounding of the exact result to the dtype.

    Args:
        draws: how many examples of the case, of the seeds 0, 1, ...
        plain: what is compared with, "plain tf32" where float32 products may be tf32.

    Returns:
        The larger share of what the two rules allow that was used, by name of the result.

    Raises:
        AssertionError: an error is larger than a rule allows.
    """
    drawn = [_errors(case, backend, dtype, device, seed, plain) for seed in range(draws)]
    shares: dict[str, float] = {}
    for name in drawn[0]:
        actual, expected, rounding = (
            torch.cat(x) for x in zip(*(d[name] for d in drawn), strict=True)
        )
        if actual.numel() == 0:
            continue
        norm = max(_rms(expected), _rms(rounding))
        largest = max(expected.max().item(), rounding.max().item())
        for rule, error, allowed in (
            ("root mean square", _rms(actual), 2 * norm),
            ("largest", actual.max().item(), 4 * largest),
        ):
            assert error <= allowed, (
                f"{case} {backend} {dtype} {name}: {rule} error {error:.3g}, allowed {allowed:.3g}"
            )
            if error:
                shares[name] = max(shares.get(name, 0.0), error / allowed)
    return shares


def _errors(
    case: Case,
    backend: str,
    dtype: torch.dtype,
    device: str | torch.device,
    seed: int,
    plain: str,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Absolute errors of the backend and of plain PyTorch, and the rounding unit, by name."""
    e = example(case, dtype, device, seed)
    exact = results(e.to(torch.float64), "plain")
    expected = results(e.to(dtype), plain)
    actual = results(e, backend)
    errors = {}
    for name, right in exact.items():
        assert actual[name].shape == right.shape, name
        unit = torch.finfo(actual[name].dtype).eps / 2
        errors[name] = (
            (actual[name].double() - right).abs().flatten(),
            (expected[name].double() - right).abs().flatten(),
            (right * unit).abs().flatten(),
        )
    return errors


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def quicken_interpreter() -> None:
    """Leaves out what takes three quarters of the time of Triton's interpreter, in this process.

    It prepares triton.language anew for each function that it enters, which a launch does for all
    functions of the kernel's module, and computes sums and products of integers again in 64 bits,
    which shows only where one is too large for 32.
    """
    from triton.runtime import interpreter

    prepare, prepared = interpreter._patch_lang, {"stal_kernels.backends.triton.kernels"}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in prepared:
            prepared.add(self.fn.__module__)
            prepare(self.fn)
        return self.rewrite()(*args, **kwargs)

    setattr(interpreter.InterpretedFunction, "__call__", call)  # noqa: B010, mypy refuses =
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
