"""Packages that not everybody has are looked for before the work, not after."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stal.evaluation import parsing, placing
from stal.extras import check_installed

BENCH = Path(__file__).parents[2] / "bench" / "bench_shapes.py"


@pytest.fixture
def without(monkeypatch):
    """without(package): as if it were not installed."""
    find = importlib.util.find_spec

    def hide(package):
        def found(name, *more):
            return None if name == package else find(name, *more)

        monkeypatch.setattr(importlib.util, "find_spec", found)

    return hide


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        *(("matplotlib", "plot"), ("scipy", "bench"), ("open_clip", "clip"), ("spacy", "spacy")),
        *(("pyarrow", "batch"), ("webdataset", "batch"), ("ray", "ray")),
    ],
)
def test_a_missing_package_is_named_with_its_command(without, package, extra):
    without(package)
    message = rf"{package} must be installed for this: pip install 'stal\[{extra}\]'"
    with pytest.raises(ValueError, match=message):
        check_installed(package, "this")


def test_evaluate_layout_looks_for_scipy_first(run, without, monkeypatch, gpt):
    without("scipy")
    monkeypatch.setattr(parsing, "score", None)
    monkeypatch.setattr(placing, "placers", None)
    code, out, err = run("evaluate-layout", "--gpt", gpt)
    assert (code, out) == (1, "")
    assert err == "stal: scipy must be installed for the intervals: pip install 'stal[bench]'\n"


def test_evaluate_layout_looks_for_spacy_first(run, without, gpt):
    without("spacy")
    code, out, err = run("evaluate-layout", "--gpt", gpt, "--engine", "spacy")
    assert (code, out) == (1, "")
    assert err == "stal: spacy must be installed for the engine spacy: pip install 'stal[spacy]'\n"


def test_plot_and_evaluate_look_for_matplotlib_first(run, without, tmp_path):
    without("matplotlib")
    (tmp_path / "w.json").write_text(json.dumps({"version": 1, "knots": {"1": [1.0]}}))
    for arguments in (
        ("plot", "w.json"),
        ("evaluate", "--prompts", "shapes:1", "--methods", "plain", "--output", "out"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.endswith(": pip install 'stal[plot]'\n")


@pytest.mark.parametrize("package", ["pyarrow", "webdataset", "ray"])
def test_generate_batch_looks_for_its_packages_first(run, monkeypatch, tmp_path, package):
    find = importlib.util.find_spec
    # As if the others were installed.
    there = {name: find("json") for name in ("pyarrow", "webdataset", "ray") if name != package}

    def found(name, *more):
        return None if name == package else there.get(name) or find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    (tmp_path / "p.txt").write_text("a red circle")
    command = ("generate-batch", "--prompts", "p.txt", "--output", "out")
    code, out, err = run(*command, "--format", "webdataset", "--engine", "ray")
    assert (code, out, err.startswith(f"stal: {package} must be installed for ")) == (1, "", True)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not BENCH.exists(), reason="needs a checkout")
def test_the_benchmark_of_shapes_looks_for_scipy_first():
    code = (
        "import importlib.util as u, runpy, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'scipy' else find(n, *a)\n"
        "import stal.pipeline\n"
        "stal.pipeline.Pipeline.from_pretrained = None\n"
        f"sys.argv = ['bench']; sys.path.insert(0, {str(BENCH.parent)!r})\n"
        f"runpy.run_path({str(BENCH)!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "scipy must be installed for the intervals" in result.stderr
