"""The `stal` command as a whole: errors and warnings of one line, exit codes, what it loads."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import stal
from stal import picture
from stal.pipeline import Pipeline

TWO = "a red circle to the left of a blue square"


def raising(error):
    def batch(*args, **kwargs):
        raise error

    return batch


def in_fresh_python(*arguments, **options):
    root = Path(stal.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, **options
    )


def test_warnings_are_one_line(run_lines, sd_folder, recwarn):
    long = ", ".join(["a red circle"] * 14)
    command = ("generate", long, "--steps", 1, "--model", sd_folder, "--quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # pytest records warnings instead of showing them.
        warnings.showwarning = lambda *args: sys.stderr.write(warnings.formatwarning(*args[:4]))
        code, _, err = run_lines(*command)
    assert code == 0
    mine = [line for line in err if "tokens" in line]
    assert len(mine) == 1
    assert mine[0].startswith("stal: the model reads 40 tokens, the end of this prompt of 57 is")


def test_inputs_that_cannot_be_read_are_one_line(failure, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    json_file = ("--json", "out.jsonl")
    for arguments, message in [
        (("layout", "--prompts", "nope", *json_file), "prompts must be a text file, got nope: No"),
        (("layout", "--prompts", "binary.txt", *json_file), "prompts must be a text file in UTF-8"),
        (("layout", " ", *json_file), "prompt must not be empty"),
        (("layout", "a cat", "--model", "nope", *json_file), "No such file"),
        (("generate", TWO, "--layout", "."), ".: Is a directory"),
        (("plot", "deep.json"), "deep.json must be JSON"),
    ]:
        assert message in failure(*arguments)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["gpu", "cpu"],
)
def test_too_little_memory_is_one_line(failure, monkeypatch, sd_folder, error):
    monkeypatch.setattr(Pipeline, "prepare", raising(error))
    line = failure("generate", TWO, "--model", sd_folder, "--quiet")
    assert line == "cpu must have more free memory: draw a smaller picture, or fewer at once"


def test_an_error_of_several_lines_is_one(failure, monkeypatch, sd_folder):
    monkeypatch.setattr(Pipeline, "prepare", raising(ValueError("first\n  second")))
    assert failure("generate", TWO, "--model", sd_folder, "--quiet") == "first second"


def test_a_fault_of_ours_keeps_its_traceback(run_lines, monkeypatch, sd_folder):
    monkeypatch.setattr(Pipeline, "prepare", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run_lines("generate", TWO, "--model", sd_folder, "--quiet")


def test_ctrl_c_exits_with_130_and_no_traceback(run_lines, monkeypatch, sd_folder):
    monkeypatch.setattr(Pipeline, "prepare", raising(KeyboardInterrupt()))
    code, out, err = run_lines("generate", TWO, "--model", sd_folder, "--quiet")
    assert (code, out, "".join(err).strip()) == (130, [], "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["paint"],
        ["generate"],
        ["generate", TWO, "--colour", "red"],
        ["generate", TWO, "--attention", "temporal"],
        ["generate", TWO, "--steps", "many"],
        ["generate", TWO, "--num-images", "0"],
        ["generate", TWO, "more"],
        ["train-shapes"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(run_lines, no_model, arguments):
    code, out, err = run_lines(*arguments)
    assert (code, out) == (2, [])
    assert "Usage: " in err[0]
    assert "Error: " in err[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'numpy', 'PIL', 'diffusers', 'transformers', 'tqdm', 'safetensors'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['stal', *{arguments}]\n"
        "from stal.__main__ import main; main()"
    )
    result = in_fresh_python("-c", code)
    assert result.returncode == 0
    assert "Usage: stal" in result.stdout
    assert result.stdout.splitlines()[-1] == "heavy: []"
    assert result.stderr == ""


def test_the_module_draws_in_a_process_of_its_own(sd_folder, tmp_path):
    command = ["-m", "stal", "generate", TWO, "--steps", "2", "--model", str(sd_folder), "--quiet"]
    result = in_fresh_python(*command, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "stal.png\n")
    assert picture.read_record(tmp_path / "stal.png")["prompt"] == TWO


def test_a_closed_pipe_is_quiet(sd_folder, tmp_path):
    root = Path(stal.__file__).parent.parent
    command = ["-m", "stal", "generate", TWO, "--steps", "1", "--model", str(sd_folder), "--quiet"]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, *command],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    os.close(writer)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
    assert (tmp_path / "stal.png").is_file()
