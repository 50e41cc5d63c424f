"""The arrows that must never be drawn, each in a fresh interpreter or in the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stal_kernels

PACKAGE = Path(stal_kernels.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = {"cpu", "cuda", "reference", "triton"}
CSRC = Path(__file__).parents[2] / "csrc"  # of the checkout: an installed package has none
KERNELS = sorted(p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def loaded_by(statement):
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(result.stdout.split())


def test_sources_were_found():
    assert len(SOURCES) >= 8
    if (PACKAGE.parent / "csrc").exists():
        assert len(KERNELS) >= 8


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_kernel_package_imports_nothing_of_the_method(path):
    forbidden = {"stal", "diffusers", "transformers", "numpy", "PIL"}
    assert not {name for name in imports(path) if name.partition(".")[0] in forbidden}


def test_importing_the_kernel_package_loads_nothing_that_it_may_not_need():
    extra = loaded_by("import stal_kernels") - loaded_by("import torch")
    roots = {name.partition(".")[0] for name in extra}
    assert not roots & {"stal", "diffusers", "transformers", "PIL", "triton", "tvm_ffi"}


def test_importing_the_kernel_package_imports_no_backend():
    loaded = loaded_by("import stal_kernels")
    assert "stal_kernels.backends" in loaded
    assert not {f"stal_kernels.backends.{name}" for name in BACKENDS} & loaded


def test_every_backend_is_known_here():
    folder = PACKAGE / "backends"
    modules = {p.stem for p in folder.iterdir() if not p.stem.startswith("__")}
    assert modules - {"choice", "contract"} == BACKENDS


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.parent.name in BACKENDS or p.stem in BACKENDS],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_backend_imports_no_other_backend(path):
    own = Path(path.relative_to(PACKAGE / "backends").parts[0]).stem
    for name in imports(path):
        _, _, rest = name.partition("stal_kernels.backends.")
        # Not by way of what chooses among them either.
        assert rest.partition(".")[0] in ("", "contract", own)
        assert name != "stal_kernels.backends"


def test_fast_backend_runs_without_the_reference():
    code = """
        import torch, stal_kernels
        q, k = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 1, 3, 8)
        stal_kernels.blended_attention(q, k, k, torch.ones(1, 1, 2), backend="cpu")
    """
    loaded = loaded_by("\n".join(line.strip() for line in code.strip().splitlines()))
    assert "stal_kernels.backends.cpu" in loaded
    assert "stal_kernels.backends.reference" not in loaded


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_environment_is_read_in_one_place(path):
    text = path.read_text(encoding="utf-8")
    allowed = {"backends/choice.py", "__main__.py"}
    if "environ" in text or "getenv" in text:
        assert str(path.relative_to(PACKAGE)) in allowed


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernel_source_includes_no_torch_header(path):
    text = path.read_text(encoding="utf-8")
    for word in ("torch/", "ATen", "c10/", "getenv"):
        assert word not in text


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_intrinsics_are_in_one_header(path):
    if path.name != "vector.h":
        text = path.read_text(encoding="utf-8")
        assert "_mm" not in text
        assert "intrin.h" not in text
