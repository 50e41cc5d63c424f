"""Who may import whom: data flows one way, and what is light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stal

PACKAGE = Path(stal.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(path: Path) -> set[str]:
    """Every module that the statements of a file import, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def importers(package: str) -> set[str]:
    return {
        name
        for name, path in MODULES.items()
        if any(f"{module}.".startswith(f"{package}.") for module in imports_of(path))
    }


def test_the_search_finds_imports():
    assert "stal.model.unet" in importers("torch")
    # Inside a function, and as a name of its package.
    assert "stal.picture" in importers("PIL")
    assert "stal.pipeline" in importers("stal.sampler")


def test_only_attention_calls_the_kernels():
    assert importers("stal_kernels") == {"stal.attention"}


def test_samplers_do_not_know_the_network():
    assert imports_of(MODULES["stal.sampler"]).isdisjoint({"stal.model.unet", "stal.pipeline"})


NETWORK_OF_LAYOUTS = {f"stal.layout.{name}" for name in ("network", "predictor", "phrase_encoder")}


@pytest.mark.parametrize("package", ["stal.prompts", "stal.model", "torch.nn"])
def test_layouts_need_no_grammar_and_no_network(package):
    layouts = {name for name in MODULES if f"{name}.".startswith("stal.layout.")}
    assert layouts > NETWORK_OF_LAYOUTS
    assert importers(package) & (layouts - NETWORK_OF_LAYOUTS) == set()


def test_what_objects_cover_needs_no_layout():
    assert "stal.layout.coverage" not in importers("stal.layout.layout")


def test_layouts_do_not_hand_on_what_learns():
    assert imports_of(MODULES["stal.layout"]).isdisjoint(NETWORK_OF_LAYOUTS)


def test_only_the_integrations_import_themselves():
    assert all(name.startswith("stal.integrations") for name in importers("stal.integrations"))


def test_nothing_reads_the_environment():
    readers = {
        (name, node.lineno)
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"))
        or (isinstance(node, ast.alias) and node.name in ("environ", "environb", "getenv"))
    }
    assert readers == set()


def test_no_pickle():
    assert importers("pickle") == set()
    loads = {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("load", "save")
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    }
    assert loads == set()


NETWORKS = {
    "stal.model.unet",
    "stal.model.checkpoint",
    "stal.pipeline",
    "diffusers",
    "transformers",
}
KERNELS = {"stal_kernels", "stal.attention"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("stal", {"torch", "numpy", "PIL"}),
        ("stal.__main__", {"torch", "numpy", "PIL", *NETWORKS, *KERNELS}),
        ("stal.prompts", {"torch", "numpy", "PIL", "stal.layout"}),
        ("stal.layout", {"torch", "numpy", "PIL", "stal.prompts", *NETWORKS, *KERNELS}),
        ("stal.layout.formats", {"torch", "PIL", "stal.prompts", *NETWORKS, *KERNELS}),
        ("stal.layout.projection", {"torch", "PIL", "stal.prompts", *NETWORKS, *KERNELS}),
        ("stal.layout.predictor", {"stal.training.layout", *NETWORKS, *KERNELS}),
        ("stal.weights", {"stal.layout", "stal.sampler", *NETWORKS, *KERNELS}),
        ("stal.sampler", {"stal.weights", *NETWORKS, *KERNELS}),
        ("stal.attention", {"stal.sampler", *NETWORKS}),
        ("stal.model.unet", {"stal.weights", "stal.layout", "stal.sampler", "diffusers", *KERNELS}),
        ("stal.pipeline", {"diffusers", "PIL", "typer", "stal.shapes"}),
        ("stal.model.clip", {"stal.pipeline", "stal.weights", "open_clip", *KERNELS}),
        ("stal.optimize", {"stal.shapes", "open_clip", "diffusers"}),
        ("stal.shapes.cases", {*NETWORKS, *KERNELS}),
    ],
)
def test_imports_in_a_fresh_interpreter(module, forbidden):
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = set(result.stdout.split())
    assert module in loaded
    assert loaded & forbidden == set()
