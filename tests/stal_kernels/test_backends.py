"""Which backend runs, and what is said when one cannot."""

import os
import subprocess
import sys

import pytest
import torch

from stal_kernels import backends, blended_attention, why_not
from stal_kernels.backends import choice, cpu, reference
from stal_kernels.testing import Case

pytestmark = pytest.mark.filterwarnings("error")


def arguments(head_dim=8, dtype=torch.float32):
    q = torch.randn(1, 2, 4, head_dim).to(dtype)
    k = torch.randn(1, 3, 2, 5, head_dim).to(dtype)
    weight = torch.randn(1, 3, 4, dtype=torch.float64 if dtype == torch.float64 else None)
    return q, k, k, weight


@pytest.fixture
def called(monkeypatch):
    """Names of the backends that ran, with their level."""
    log = []
    for module in (cpu, reference):
        original = module.forward

        def spy(inputs, level, out, original=original, module=module):
            log.append((module.__name__.rpartition(".")[2], level))
            original(inputs, level, out)

        monkeypatch.setattr(module, "forward", spy)
    return log


def test_auto_takes_the_fast_backend(called):
    blended_attention(*arguments())
    assert called == [("cpu", "")]


def test_auto_takes_the_reference_for_float64_without_a_warning(called):
    blended_attention(*arguments(dtype=torch.float64))
    assert called == [("reference", "")]


def test_auto_warns_once_when_it_falls_to_the_reference(called):
    with pytest.warns(UserWarning, match="multiple of 8 and at most 256, got 36"):
        blended_attention(*arguments(head_dim=36))
    blended_attention(*arguments(head_dim=36))  # a second warning would be an error
    assert called == [("reference", "")] * 2


def test_named_backend_runs(called):
    blended_attention(*arguments(), backend="reference")
    blended_attention(*arguments(), backend="cpu:portable")
    assert called == [("reference", ""), ("cpu", "portable")]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        pytest.param({"head_dim": 36}, "head_dim that is a multiple of 8", id="head_dim"),
        pytest.param({"head_dim": 264}, "at most 256, got 264", id="large-head_dim"),
        pytest.param({"dtype": torch.float64}, "got torch.float64", id="float64"),
    ],
)
def test_named_backend_never_falls_back(changed, reason, called):
    with pytest.raises(NotImplementedError, match=f"backend cpu cannot run this: .*{reason}"):
        blended_attention(*arguments(**changed), backend="cpu")
    assert not called


def test_named_level_that_the_machine_lacks_raises(monkeypatch, called):
    monkeypatch.setattr(cpu, "missing", lambda level: f"cpu:{level} is missing: this CPU lacks x")
    with pytest.raises(NotImplementedError, match="cpu:avx512 is missing: this CPU lacks x"):
        blended_attention(*arguments(), backend="cpu:avx512")
    assert not called


def test_variable_replaces_auto_only(monkeypatch, called):
    monkeypatch.setenv("STAL_KERNELS_BACKEND", "reference")
    blended_attention(*arguments())
    blended_attention(*arguments(), backend="cpu")
    assert called == [("reference", ""), ("cpu", "")]


def test_variable_that_names_no_backend_raises(monkeypatch):
    monkeypatch.setenv("STAL_KERNELS_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"STAL_KERNELS_BACKEND must be one of auto, .*got 'gpu'"):
        blended_attention(*arguments())


def test_variable_may_be_empty_or_auto(monkeypatch, called):
    for value in ("", "auto"):
        monkeypatch.setenv("STAL_KERNELS_BACKEND", value)
        blended_attention(*arguments())
    assert called == [("cpu", "")] * 2


def test_why_not_is_empty_for_what_runs():
    q, k, *_ = arguments()
    assert why_not("reference") == []
    assert why_not("cpu") == []
    assert why_not("cpu", q, k) == []


def test_why_not_names_every_reason():
    q = torch.zeros(1, 1, 4, 36, dtype=torch.float64, device="meta")
    assert len(why_not("cpu", q)) == 3


def test_why_not_refuses_what_is_no_backend():
    with pytest.raises(ValueError, match=r"backend must be one of cpu, .*got 'auto'"):
        why_not("auto")
    with pytest.raises(ValueError, match="got 'gpu'"):
        why_not("gpu")


@pytest.fixture
def package(monkeypatch, tmp_path):
    """An empty folder in place of that of stal_kernels, asked anew every time."""
    folder = tmp_path / "source" / "stal_kernels"
    folder.mkdir(parents=True)
    monkeypatch.setattr(cpu, "_FOLDER", folder)
    for function in (cpu._library, choice._missing):
        monkeypatch.setattr(f"{function.__module__}.{function.__name__}", function.__wrapped__)
    return folder


def test_why_not_says_that_the_library_was_not_built(package):
    (package / "not_built.txt").write_text("no C++ compiler was found\n")
    assert why_not("cpu") == ["cpu is missing: it was not built: no C++ compiler was found"]
    assert why_not("cpu:avx2")[0].startswith("cpu is missing")


def test_why_not_says_that_the_installed_package_is_broken(package):
    assert why_not("cpu") == [
        f"cpu is missing: {package} has no library; install the package again"
    ]


def test_why_not_says_that_this_is_the_source_folder(package, monkeypatch):
    (package.parent / "setup.py").touch()
    monkeypatch.setattr(sys, "path", [str(package.parent), "/nonexistent"])
    (reason,) = why_not("cpu")
    assert f"imported from the source folder {package.parent}, whose library is not" in reason
    assert "run `pip install -e .` in it (or `python setup.py build_ext --inplace`)" in reason
    (only,) = why_not("cpu:avx2")
    assert only.startswith("cpu is missing: ")


def test_why_not_names_the_installed_copy_that_the_source_folder_hides(
    package, monkeypatch, tmp_path
):
    (package.parent / "setup.py").touch()
    installed = tmp_path / "site-packages"
    (installed / "stal_kernels").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(package.parent), str(installed)])
    assert "installed copy" not in why_not("cpu")[0]  # it has no library either
    (installed / "stal_kernels" / "libstal_kernels.so").touch()
    (reason,) = why_not("cpu")
    assert f"cd) to use the installed copy in {installed}, or build it" in reason
    with pytest.warns(UserWarning, match="slow reference backend: cpu is missing: .*source folder"):
        blended_attention(*arguments())


def test_why_not_says_that_the_library_does_not_load(monkeypatch, tmp_path):
    (tmp_path / "libstal_kernels.so").write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "_FOLDER", tmp_path)
    for function in (cpu._library, choice._missing):
        monkeypatch.setattr(f"{function.__module__}.{function.__name__}", function.__wrapped__)
    assert why_not("cpu")[0].startswith("cpu is missing: ")


@pytest.mark.parametrize("q", [3, [1.0], torch.ones(())], ids=["number", "list", "scalar"])
def test_why_not_refuses_what_is_no_tensor_of_a_call(q):
    with pytest.raises(ValueError, match="q must be a tensor of 1 dimensions or more, got"):
        why_not("cpu", q)
    with pytest.raises(ValueError, match="k must be a tensor of 2 dimensions or more, got"):
        why_not("cpu", torch.ones(8), q)


def table(**environment):
    said = subprocess.run(
        [sys.executable, "-m", "stal_kernels"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    ).stdout
    return dict(line.split(maxsplit=1) for line in said.splitlines())


def test_table_says_that_the_variable_names_no_backend():
    rows = table(STAL_KERNELS_BACKEND="\x1b[2Jgpu")
    assert rows["STAL_KERNELS_BACKEND"].startswith(r"'\x1b[2Jgpu', which is no backend")


def test_table_names_versions_and_every_backend():
    rows = table(STAL_KERNELS_BACKEND="cpu:portable")
    assert rows["torch"] == torch.__version__
    assert rows["reference"] == "available"
    assert rows["STAL_KERNELS_BACKEND"] == "cpu:portable"
    assert set(backends.names()) <= set(rows)


@pytest.mark.parametrize("wrong", [{"layout": "diagonal"}, {"region": "blob"}])
def test_case_of_an_unknown_kind_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must be one of .*, got '"):
        Case(**wrong)
