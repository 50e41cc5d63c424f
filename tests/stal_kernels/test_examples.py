"""The scripts in examples/: what each says of the operator holds, and it needs nothing of stal."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

import stal_kernels

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PAGE = ROOT / "docs" / "kernels.md"

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def scaled(op):
    return lambda *arguments, **options: 1.01 * op(*arguments, **options)


def one_pixel_off(op):
    def wrong(q, k, v, weight, *arguments, region, **options):
        weight, region = weight.roll(1, -1), region.roll(1, -1)
        return op(q, k, v, weight, *arguments, region=region, **options)

    return wrong


@each_script
def test_example_runs_and_says_so_in_one_line(script, capsys):
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.count("\n") == 1


@each_script
@pytest.mark.parametrize("mistake", [scaled, one_pixel_off])
def test_example_notices_a_wrong_operator(script, mistake, monkeypatch):
    for name in ("blended_attention", "blended_attention_ragged"):
        monkeypatch.setattr(stal_kernels, name, mistake(getattr(stal_kernels, name)))
    with pytest.raises(AssertionError):
        runpy.run_path(str(script), run_name="__main__")


@each_script
def test_example_imports_the_operator_and_torch_alone(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    names = [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    needed = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert needed - {"diffusers"} == {"stal_kernels", "torch"}
    assert ("diffusers" in needed) == (script.stem == "diffusers_processor")


def test_examples_were_found():
    assert len(SCRIPTS) >= 5


@pytest.mark.skipif(not PAGE.exists(), reason="needs a checkout")
def test_code_on_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})


@pytest.mark.skipif(not PAGE.exists(), reason="needs a checkout")
def test_page_lists_every_example():
    page = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+\.py)\]\(\.\./examples/\1\)", page, re.MULTILINE)
    assert sorted(listed) == [script.name for script in SCRIPTS]
