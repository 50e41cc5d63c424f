"""The scripts in bench/ that need no GPU to be wrong."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stal_kernels import why_not
from stal_kernels.testing import Case, example

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
SECONDS = {"eager": 6.0, "loop": 4.0, "one SDPA": 1.0, "triton": 2.0}


def run(script, *arguments, **environment):
    return subprocess.run(
        [sys.executable, str(BENCH / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture
def record(tmp_path):
    rows = [
        {
            "case": "small",
            "pass": "forward",
            "backend": name,
            "_seconds": {"p20": 0.8 * s, "median": s, "p80": 1.25 * s},
        }
        for name, s in SECONDS.items()
    ]
    # A rival that could not run.
    rows.append({"case": "small", "pass": "forward", "backend": "flex", "_seconds": None})
    path = tmp_path / "gpu_check.json"
    path.write_text(json.dumps({"machine": {"gpu": "H100", "cpu": "some"}, "times": rows}))
    return path


def test_plot_shows_ratios_of_medians(record, tmp_path):
    done = run("plot.py", record, "--output", tmp_path / "x.svg", "--against", "loop")
    assert done.returncode == 0, done.stderr
    svg = (tmp_path / "x.svg").read_text()
    for text in ("2.00", "small, forward", "times faster than loop", "triton", "H100"):
        assert text in svg
    # Only the backends have bars.
    assert "eager" not in svg


def test_plot_of_absent_times_is_refused(record, tmp_path):
    output = tmp_path / "x.svg"
    done = run("plot.py", record, "--output", output, "--against", "compiled")
    assert done.returncode == 2
    assert "no times" in done.stderr
    assert not output.exists()


def test_tuner_without_a_gpu_asks_for_the_capability():
    done = run("tune_triton.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "--capability is needed" in done.stderr


def test_tuner_writes_the_table_that_is_read(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import tune_triton

    from stal_kernels.backends.triton.tiles import TABLE, rows

    assert tune_triton.render(rows()) == TABLE.read_text(encoding="utf-8")
    for row in rows():
        tiles = {d: next(t for t in row.tiles if d <= t.head_dim) for d in tune_triton.LIMITS}
        merged = tune_triton.merged(tiles)
        again = {d: next(t for t in merged if d <= t.head_dim) for d in tune_triton.LIMITS}
        assert {d: t[1:] for d, t in again.items()} == {d: t[1:] for d, t in tiles.items()}


def test_table_has_a_tile_for_every_call():
    from stal_kernels.backends.triton.tiles import rows

    keys = {row[:4] for row in rows()}
    assert len(keys) == len(rows()) == 3 * 2 * 3 * 2
    for row in rows():
        limits = [tile.head_dim for tile in row.tiles]
        assert limits == sorted(limits)
        assert limits[-1] == 256


def test_cost_model_prints_a_prediction_for_each_chip():
    done = run(
        "cost_model.py", "--cases", "sd15-64x64", "--passes", "forward", PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 0, done.stderr
    for chip in ("A100 us", "H100 us", "H200 us"):
        assert chip in done.stdout
    assert len(done.stdout.splitlines()) > 2


def test_kernel_model_is_within_a_quarter_of_the_run_on_an_h200(monkeypatch):
    for folder in (ROOT / "bench", ROOT / "examples"):
        monkeypatch.syspath_prepend(str(folder))
    import kernel_model

    record = json.loads(kernel_model.MEASURED.read_text())
    rows = kernel_model.compared(record, kernel_model.Constants())
    assert len(rows) == sum(row["backend"] == "triton" for row in record["times"])
    claimed = [row for row in rows if row.model is not None]
    assert len(claimed) >= 0.8 * len(rows)
    far = [row for row in claimed if not 0.75 <= row.ratio <= 1.25]
    assert not far
    # Each constant is needed: a model of none of what it stands for is not near.
    for name, value in vars(kernel_model.Constants()).items():
        without = kernel_model.compared(record, kernel_model.Constants(**{name: 0.0}))
        error, worse = (
            sum(abs(row.ratio - 1) for row in each if row.model) for each in (rows, without)
        )
        assert value > 0
        assert worse > 1.05 * error


def test_prompts_met_are_those_of_a_tile(monkeypatch):
    for folder in (ROOT / "bench", ROOT / "examples"):
        monkeypatch.syspath_prepend(str(folder))
    import kernel_model

    strips = Case(seqlen_q=256, prompts=4, region="disjoint")
    assert kernel_model.prompts_met(strips, 64) == 1
    assert kernel_model.prompts_met(strips, 128) == 2
    bands = Case(seqlen_q=256, prompts=4, region="bands")
    assert kernel_model.prompts_met(bands, 64) == 4
    assert kernel_model.prompts_met(bands, 64, planned=True) == 1
    assert kernel_model.prompts_met(Case(seqlen_q=100, prompts=3), 64) == 3


@pytest.mark.skipif(shutil.which("c++") is None, reason="compiles the measurement")
@pytest.mark.skipif(bool(why_not("cpu")), reason="measures the cpu backend")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cpu_limit_prints_limit_and_time_of_each_pass(dtype, tmp_path):
    sizes = ("--cases", "sd15-8x8", "--prompts", "1", "--rounds", "1", "--threads", "1")
    path = tmp_path / "limit.json"
    done = run("cpu_limit.py", *sizes, "--dtype", dtype, "--output", path)
    assert done.returncode == 0, done.stderr
    header, columns, *rows = done.stdout.splitlines()
    assert f"dtype: {dtype}" in header
    assert "level: " in header
    for column in ("ms median", "ms products", "ms exps", "ms limit", "of limit", "G exps/s"):
        assert column in columns
    assert [row.split()[:3] for row in rows] == [
        ["sd15-8x8", "p1", name] for name in ("forward", "dq+dweight")
    ]
    forward, both = json.loads(path.read_text())["rows"]
    parts = float(forward["ms products"]) + float(forward["ms exps"])
    assert forward["limit_s"] == pytest.approx(parts / 1e3, rel=0.02)
    assert both["limit_s"] > 0
    assert path.with_suffix(".md").exists()


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """csrc/test/tiles.cpp, with cpu_limit.cpp as it is compiled on a CPU with AMX."""
    for reason in why_not("cpu:avx512_bf16"):
        pytest.skip(f"code for AMX uses AVX-512 too: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import cpu_limit
    target = tmp_path_factory.mktemp("tiles") / "tiles"
    source = ROOT / "csrc" / "test" / "tiles.cpp"
    command = [*cpu_limit.command("amx"), "-mamx-tile", "-mamx-bf16", source, "-o", target]
    subprocess.run(command, check=True)
    return target


@pytest.mark.skipif(shutil.which("c++") is None, reason="compiles the measurement")
def test_cpu_limit_asks_for_permission_before_it_uses_tiles(tiles):
    said = subprocess.run([tiles, "granted"], capture_output=True, text=True, check=True).stdout
    asked, used = said.splitlines()
    assert asked == "arch_prctl 0x1023 18"
    what, configuration = used.split()
    assert what == "tiles"
    # Palette 1; eight registers of 16 rows of 64 bytes.
    expected = struct.pack("<16B16H16B", 1, *[0] * 15, *[64] * 8, *[0] * 8, *[16] * 8, *[0] * 8)
    assert bytes.fromhex(configuration) == expected


@pytest.mark.skipif(shutil.which("c++") is None, reason="compiles the measurement")
def test_cpu_limit_uses_no_tiles_without_permission(tiles):
    said = subprocess.run([tiles, "refused"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["arch_prctl 0x1023 18", "refused"]


@pytest.mark.skipif(bool(why_not("cpu")), reason="measures the cpu backend")
def test_overhead_prints_the_call_its_parts_and_their_sum(tmp_path):
    path = tmp_path / "overhead.json"
    done = run("bench_blended_attention.py", "--overhead", "--rounds", 1, "--output", path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    medians = {row["call"]: row["seconds"]["median"] for row in rows if "seconds" in row}
    assert {"SDPA", "ours", "SDPA, gradient recorded", "ours, gradient recorded"} <= medians.keys()
    parts = [median for name, median in medians.items() if name.startswith("  ")]
    assert len(parts) == 4
    assert rows[-1]["call"] == "sum of the four parts"
    assert float(rows[-1]["us median (p20-p80)"]) == pytest.approx(sum(parts) * 1e6, abs=0.06)
    assert "ours, region" in path.with_suffix(".md").read_text()


def test_what_a_gpu_needs_is_torch_and_triton():
    absent = (
        "typer",
        "stal",
        "diffusers",
        "transformers",
        "matplotlib",
        "scipy",
        "pytest",
        "tvm_ffi",
    )
    code = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r})\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"
        "import gpu_check, tune_triton"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- regions ----


@pytest.fixture
def regions(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import regions

    return regions


def mask(case):
    """(prompts, side, side) bool."""
    return example(case, torch.float32).region[0].unflatten(-1, (16, 16))


def masks(regions, prompts, name):
    ((_, case),) = regions.with_regions(Case(seqlen_q=256, seqlen_k=1), prompts, [name])
    return mask(case)


def test_rows_have_the_names_of_their_regions(regions):
    labels = [label for label, _ in regions.with_regions(Case(), 5, regions.REGIONS)]
    assert labels == [
        "p5",
        "p5 disjoint",
        "p5 bands",
        "p5 global+disjoint",
        "p5 global+boxes",
        "p5 global+layout",
        "p5 global+ellipses",
    ]
    assert [label for label, _ in regions.with_regions(Case(), 1, regions.REGIONS)] == ["p1"]
    two = [label for label, _ in regions.with_regions(Case(), 2, regions.REGIONS)]
    assert "p2 global+disjoint" not in two
    many = [label for label, _ in regions.with_regions(Case(), 20, regions.REGIONS)]
    assert "p20 global+boxes" in many
    assert "p20 global+layout" not in many


def test_bands_and_strips_have_one_prompt_a_pixel(regions):
    for name in ("disjoint", "bands"):
        assert (masks(regions, 4, name).sum(0) == 1).all()
    assert torch.equal(masks(regions, 4, "bands"), masks(regions, 4, "disjoint").mT)


@pytest.mark.parametrize("objects", range(1, 9))
def test_layouts_have_a_box_an_object(regions, objects):
    boxes = masks(regions, objects + 1, "layout")
    ellipses = masks(regions, objects + 1, "ellipses")
    assert boxes[0].all()
    assert ellipses[0].all()
    for (x0, y0, x1, y1), box, ellipse in zip(
        regions.LAYOUTS[objects - 1], boxes[1:], ellipses[1:], strict=True
    ):
        columns, lines = (box.any(axis).nonzero().flatten().tolist() for axis in (0, 1))
        # Every pixel of which the box covers a part.
        assert columns == [i for i in range(16) if i < x1 * 16 and i + 1 > x0 * 16]
        assert lines == [i for i in range(16) if i < y1 * 16 and i + 1 > y0 * 16]
        assert box.sum() == len(columns) * len(lines)
        assert (ellipse <= box).all()
        assert ellipse.any()
        if len(columns) > 5 and len(lines) > 5:
            assert ellipse.sum() < box.sum()


@pytest.mark.parametrize(
    "wrong",
    [
        {"region": "ellipses"},
        {"region": "boxes", "boxes": ((0, 0, 1, 1),) * 2},
        {"region": "bands", "boxes": ((0, 0, 1, 1),)},
        {"boxes": ((0, 0, 1, 1),)},
    ],
    ids=str,
)
def test_boxes_that_do_not_fit_the_case_are_refused(wrong):
    with pytest.raises(ValueError, match="boxes must be one for each prompt but the first"):
        Case(prompts=2, **wrong)


@pytest.mark.skipif(bool(why_not("cpu")), reason="measures the cpu backend")
def test_benchmark_has_a_row_for_each_region_that_is_asked_for(tmp_path):
    path = tmp_path / "blended.json"
    shape = ("--cases", "sd15-8x8", "--prompts", "4", "--passes", "forward", "--rounds", 1)
    regions = ("--regions", "bands", "layout", "ellipses", "--planned")
    done = run("bench_blended_attention.py", *shape, *regions, "--output", path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    cpu = {row["case"]: row for row in rows if row["backend"] == "cpu"}
    assert list(cpu) == [
        "sd15-8x8 p4 bands",
        "sd15-8x8 p4 global+layout",
        "sd15-8x8 p4 global+ellipses",
    ]
    assert [row["case"] for row in rows if row["backend"] == "cpu plan"] == list(cpu)
    assert len(cpu["sd15-8x8 p4 global+layout"]["sizes"]["boxes"]) == 3
    # Products are counted where prompts exist.
    flops = [row["flops"] for row in cpu.values()]
    assert flops[0] < flops[2] <= flops[1]


# ---- pytest-benchmark ----


def test_ordinary_run_collects_no_benchmark(pytestconfig):
    assert pytestconfig.getini("testpaths") == ["tests"]


def test_speed_runs_every_function():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += ["--benchmark-disable", "--cases", "sd15-8x8 p1", "test_speed.py"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=BENCH,  # not the checkout, whose library need not be built
    )
    assert done.returncode == 0, done.stdout + done.stderr
    backends = not why_not("cpu")
    assert f"{3 * (3 + backends)} passed" in done.stdout
