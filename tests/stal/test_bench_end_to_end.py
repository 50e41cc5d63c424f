"""bench/bench_end_to_end.py: its models, the ways that it compares, the table that it writes."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from stal_kernels import why_not

BENCH = Path(__file__).parents[2] / "bench"

pytestmark = pytest.mark.skipif(bool(why_not("cpu")), reason="measures the cpu backend")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import bench_end_to_end

    return bench_end_to_end


@pytest.fixture
def step_ways(bench):
    import step_ways

    return step_ways


@pytest.fixture
def unet(step_ways):
    return step_ways.build("tiny", torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(("model", "size"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684)])
def test_models_have_the_real_sizes(step_ways, model, size):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**step_ways.MODELS[model])
    assert sum(p.numel() for p in unet.parameters()) == size


def test_ways_share_the_weights(step_ways, unet):
    work = step_ways.scene(unet, 2, 8, 8)
    places = {name: p.data_ptr() for name, p in unet.named_parameters()}
    for name in step_ways.WAYS:
        other = step_ways.way(name, unet, work).unet
        assert {name: p.data_ptr() for name, p in other.named_parameters()} == places


@pytest.mark.parametrize("regions", range(1, 6))
def test_scene_has_a_box_for_each_region(step_ways, unet, regions):
    work = step_ways.scene(unet, regions, 16, 24)
    assert work.regions == regions
    assert len(work.embeddings) == 2 + regions
    assert sorted(work.maps) == [4 * 6, 8 * 12, 16 * 24]
    region = work.maps[16 * 24].region
    # A box is no strip of consecutive pixels: it leaves out some of each row that it meets.
    for one in region[1:].unflatten(-1, (16, 24)):
        assert one.any()
        assert not one.all(-1).any()


@torch.no_grad()
def test_exact_is_the_formula_in_float64(step_ways, unet):
    work = step_ways.scene(unet, 2, 8, 8)
    for name in ("eager formula", "diffusers"):
        right = step_ways.exact(name, unet, work)
        wide = step_ways.way(name, copy.deepcopy(unet).double(), work.double()).step()
        torch.testing.assert_close(right, wide, rtol=0, atol=0)
        assert right.dtype == torch.float64


def exact(step_ways, unet, work):
    return [step_ways.exact(name, unet, work) for name in ("diffusers", "eager formula")]


@pytest.mark.parametrize(
    ("dtype", "regions"),
    [(torch.float32, 1), (torch.float32, 5), (torch.bfloat16, 2), (torch.bfloat16, 5)],
)
@torch.no_grad()
def test_ways_are_the_formula(bench, step_ways, dtype, regions):
    unet = step_ways.build("tiny", dtype, torch.device("cpu"))
    work = step_ways.scene(unet, regions, 16, 16)
    names = [name for name in step_ways.WAYS if name != "flex"]
    _, outs, failures = bench.prepared(names, unet, work)
    plain = step_ways.way("eager formula", unet, work).step()
    assert list(bench.check(outs, plain, *exact(step_ways, unet, work))) == names
    assert not failures


@pytest.mark.slow
@torch.no_grad()
def test_flex_is_the_formula(bench, step_ways, unet):
    work = step_ways.scene(unet, 3, 16, 16)
    _, outs, failures = bench.prepared(["flex"], unet, work)
    assert not failures
    plain = step_ways.way("eager formula", unet, work).step()
    bench.check(outs, plain, *exact(step_ways, unet, work))


def test_check_refuses_wrong_results(bench):
    generator = torch.Generator().manual_seed(0)
    right, change = torch.randn(2, 1000, dtype=torch.float64, generator=generator)
    without = right - 0.1 * change
    plain, plainly_wrong = right.float() + 1e-3, without.float() + 0.01
    outs = {"diffusers": plainly_wrong, "naive": plain}
    assert bench.check(outs, plain, without, right)["naive"][0] <= 0.5

    def refused(name, out, match):
        with pytest.raises(AssertionError, match=f"{name} .*{match}"):
            bench.check({name: out}, plain, without, right)

    refused("naive", right.float() + 2.1e-3, "error that is allowed")
    refused("naive", right.float().index_fill(0, torch.tensor([3]), 5.0), "error that is allowed")
    refused("naive", torch.full_like(plain, torch.nan), "nan of what regions change")
    refused("naive", without.float(), "0.000 of what regions change")
    refused("diffusers", plain, "1.0.. of what regions change")


def run(bench, unet, work, names):
    table = bench.Table(bench.COLUMNS)
    labels = {"model": "tiny", "dtype": "float32", "latents": "8x8", "regions": "2"}
    bench.measure(table, labels, names, unet, work, 1, dict.fromkeys(names))
    return table.rows


def test_way_that_computes_something_else_is_not_timed(bench, step_ways, unet, monkeypatch):
    attend = step_ways.Naive.attend
    monkeypatch.setattr(step_ways.Naive, "attend", lambda *args: attend(*args) / 2)
    monkeypatch.setattr(bench, "interleave", lambda *_, **__: pytest.fail("it was timed"))
    with pytest.raises(AssertionError, match="naive"):
        run(bench, unet, step_ways.scene(unet, 2, 8, 8), ["diffusers", "naive"])


def test_row_says_why_flex_cannot_run(bench, step_ways, unet, monkeypatch):
    def no_compiler():
        raise RuntimeError("no C++ compiler\nand a page more")

    monkeypatch.setattr(step_ways, "_compiled_flex", no_compiler)
    rows = run(bench, unet, step_ways.scene(unet, 2, 8, 8), ["diffusers", "flex", "drop-in"])
    assert [row["way"] for row in rows] == ["diffusers", "drop-in", "flex"]
    assert [row["note"] for row in rows] == ["", "", "no C++ compiler"]
    assert rows[-1]["seconds"] is None


def test_interleave_of_warm_functions_calls_each_once_a_round_in_turn(bench):
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = bench.interleave(functions, rounds=3, sample_s=0)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert list(times) == ["a", "b"]


def test_table_has_a_row_for_each_way(tmp_path):
    path = tmp_path / "table.json"
    arguments = ["--model", "tiny", "--latents", "8x16", "--regions", "2", "--repeats", "2"]
    arguments += ["--ways", "diffusers,drop-in", "--output", str(path)]
    done = subprocess.run(
        [sys.executable, str(BENCH / "bench_end_to_end.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [row["way"] for row in rows] == ["diffusers", "drop-in"]
    plain = rows[0]
    for row in rows:
        ratio = row["seconds"]["median"] / plain["seconds"]["median"]
        assert row["x diffusers"] == f"{ratio:.3f}"
        assert row["latents"] == "8x16"
        assert 0 < row["cross_attention"] < 1
        if sys.platform.startswith("linux"):
            assert row["memory x diffusers"] == f"{row['memory_mb'] / plain['memory_mb']:.3f}"
    assert path.with_suffix(".md").read_text().count("| tiny |") == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "sd3"),
        ("--dtype", "float64"),
        ("--regions", "6"),
        ("--latents", "63"),
        ("--latents", "8x8x8"),
        ("--ways", "naive"),
    ],
    ids=" ".join,
)
def test_wrong_option_is_named(bench, arguments):
    from typer import Typer
    from typer.testing import CliRunner

    app = Typer()
    app.command()(bench.main)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert arguments[0].removeprefix("--") in done.output
