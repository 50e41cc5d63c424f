"""The `stal` command as a whole: errors and warnings of one line, exit codes, what it loads."""

import errno
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import stal
from stal import picture
from stal.finite import NotFinite
from stal.pipeline import Pipeline

TWO = "a red circle to the left of a blue square"


def raising(error):
    def batch(*args, **kwargs):
        raise error

    return batch


def in_fresh_python(*arguments, **options):
    root = Path(stal.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, *arguments], text=True, env=environment, **pipes)


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
        (("layout", "--prompts", "binary.txt", *json_file), "prompts must be text in UTF-8"),
        (("layout", " ", *json_file), "prompt must not be empty"),
        (("layout", "a cat", "--model", "nope", *json_file), "No such file"),
        (("generate", TWO, "--layout", "."), ".: layout must be a file, got the folder"),
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


@pytest.mark.parametrize("error", [ValueError, NotImplementedError, NotFinite])
def test_an_error_of_ours_is_no_unexpected_one(failure, monkeypatch, sd_folder, error):
    monkeypatch.setattr(Pipeline, "prepare", raising(error("the vae must be finite, got NaN")))
    line = failure("generate", TWO, "--model", sd_folder, "--quiet")
    assert line == "the vae must be finite, got NaN"


def test_too_little_memory_says_what_to_do_in_each_command(failure, monkeypatch):
    monkeypatch.setattr(Pipeline, "from_pretrained", raising(MemoryError()))
    assert failure("generate", TWO) == (
        "there must be more free memory: draw a smaller picture, or fewer at once"
    )
    assert "a smaller --batch" in failure("evaluate", *EVALUATE)


EVALUATE = ("--prompts", "shapes:1", "--methods", "plain", "--output", "out")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        KeyError("a bug"),
        OverflowError("a bug"),
        RecursionError("a bug"),
        AssertionError("a bug"),
        TypeError("a\n bug"),
        zipfile.BadZipFile("a bug"),
        UnicodeDecodeError("utf-8", b"", 0, 0, "a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_is_one_line(failure, monkeypatch, error):
    monkeypatch.setattr(Pipeline, "from_pretrained", raising(error))
    line = failure("generate", TWO)
    assert line.startswith(f"unexpected {type(error).__name__}: ")
    assert "bug" in line
    assert line.endswith("`stal --debug ...` shows where")


def test_an_error_without_a_text_is_named(failure, monkeypatch):
    monkeypatch.setattr(Pipeline, "from_pretrained", raising(AssertionError()))
    assert failure("generate", TWO).startswith("unexpected AssertionError: `stal --debug")


@pytest.mark.parametrize("arguments", [["--debug", "generate", TWO], ["generate", TWO, "--debug"]])
def test_debug_shows_the_traceback(run_lines, monkeypatch, arguments):
    monkeypatch.setattr(Pipeline, "from_pretrained", raising(RuntimeError("a bug")))
    code, out, err = run_lines(*arguments)
    assert (code, out) == (1, [])
    assert err[0] == "Traceback (most recent call last):"
    assert err[-1].startswith("stal: unexpected RuntimeError: a bug")


def test_ctrl_c_exits_with_130_and_one_line(run_lines, monkeypatch, sd_folder):
    monkeypatch.setattr(Pipeline, "prepare", raising(KeyboardInterrupt()))
    code, out, err = run_lines("generate", TWO, "--model", sd_folder, "--quiet")
    assert (code, out, err) == (130, [], ["stal: interrupted"])


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("stal.pipeline.Pipeline.from_pretrained", ("evaluate", *EVALUATE)),
        ("stal.pipeline.Pipeline.from_pretrained", ("fit-schedule", "--shapes", 1)),
        ("stal.training.layout.train", ("train-layout", "--output", "out")),
        ("stal.training.shapes.train", ("train-shapes", "--output", "out")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_interruption_says_where_to_go_on(run_lines, monkeypatch, function, arguments):
    monkeypatch.setattr(function, raising(KeyboardInterrupt()))
    code, out, err = run_lines(*arguments)
    assert (code, out) == (130, [])
    assert err == ["stal: interrupted: run the same command again, it goes on where it stopped"]


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "make room and run again"),
        (errno.EDQUOT, "make room, or ask for a larger quota and run again"),
        (errno.EFBIG, "allow larger files (ulimit -f), or write to another disk and run again"),
        (errno.EROFS, "write to a place that is not read-only and run again"),
    ],
)
@pytest.mark.parametrize("at", ["fsync", "open", "replace"])
def test_a_disk_that_takes_no_more_says_what_to_do(failure, monkeypatch, at, number, fix):
    def full(*args, **kwargs):
        if at == "open" and not str(args[0]).endswith(".tmp"):
            return open(*args, **kwargs)
        raise OSError(number, os.strerror(number))

    if at == "open":
        monkeypatch.setattr("stal.files.open", full, raising=False)
    else:
        monkeypatch.setattr(os, at, full)
    for arguments in (
        ("layout", "a cat", "--output", "a.png"),
        ("layout", "a cat", "--json", "a.json"),
    ):
        line = failure(*arguments)
        assert line == f"{arguments[-1]}: {os.strerror(number)}: {fix}"


def test_a_full_disk_is_told_where_a_file_is_only_tried(failure, monkeypatch):
    def full(**kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    line = failure("layout", "a cat", "--json", "a.json")
    assert line == (
        "json must be writable, got a.json: No space left on device: make room and run again"
    )


def test_a_full_disk_that_safetensors_finds_is_told(failure, monkeypatch):
    error = SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(Pipeline, "from_pretrained", raising(error))
    assert failure("generate", TWO).endswith("(os error 28): make room and run again")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["layout", "a cat", "--output", "a.png"]], ids=" ".join
)
def test_a_full_standard_output_is_one_line(tmp_path, arguments):
    with open("/dev/full", "w") as full:
        result = in_fresh_python("-m", "stal", *arguments, stdout=full, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == "stal: No space left on device: make room and run again\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["generate", "--help"]])
def test_nobody_reading_is_quiet(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    result = in_fresh_python("-m", "stal", *arguments, stdout=writer)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


HOSTILE = "\x1b[2J\x1b]0;title\x07\r\x9b31m\u202egnp.\u2066\ud800"


def test_nothing_that_is_echoed_reaches_the_terminal_as_it_is(run_lines, no_model, tmp_path):
    (tmp_path / "l.json").write_text('{"\\u001b[31m": 1}')
    (tmp_path / "p.txt").write_text("a cat \x1b[31m left of a dog\n", encoding="utf-8")
    for arguments in [
        (HOSTILE, "x"),
        ("generate", f"a {HOSTILE}", f"--{HOSTILE}"),
        ("generate", TWO, "--output", f"{HOSTILE}.jpg"),
        ("generate", TWO, "--layout", f"{HOSTILE}.json"),
        ("generate", TWO, "--layout", "l.json"),
        ("generate", TWO, "--from", f"{HOSTILE}.png"),
        ("generate", TWO, "--weights", f"1,{HOSTILE}"),
        ("generate", TWO, "--attention", HOSTILE),
        ("generate", TWO, "--steps", HOSTILE),
        ("layout", "a \x1b[31mcat", "--json", "a.json", "--aspect", HOSTILE),
        ("layout", "--prompts", HOSTILE, "--json", "a.jsonl"),
        ("evaluate", "--prompts", HOSTILE, "--methods", "plain", "--output", "out"),
        ("evaluate", "--prompts", "shapes:1", "--methods", HOSTILE, "--output", "out"),
        ("plot", HOSTILE),
        ("train-layout", "--output", "out", "--nsr1k", f"{HOSTILE}.json"),
        ("evaluate-layout", "--captions", HOSTILE),
        ("evaluate-layout", "--captions", "p.txt", "--engine", HOSTILE),
    ]:
        code, out, err = run_lines(*arguments)
        assert code in (1, 2)
        text = "\n".join([*out, *err])
        assert text.isprintable() or set(text) - set("\n") == set(filter(str.isprintable, text))
        text.encode()


def test_a_file_name_that_moves_the_cursor_is_printed_as_it_is(run_lines):
    code, out, err = run_lines("layout", "a cat", "--output", "\r\x1b[A\x1b[Ax.png")
    assert (code, out, err) == (0, ["\\r\\x1b[A\\x1b[Ax.png"], [])


def test_bars_of_several_lines_are_drawn(run, monkeypatch):
    def work(*args, **kwargs):
        from tqdm import tqdm

        for _ in tqdm(range(2)):
            for _ in tqdm(range(2), position=1):
                pass
        raise ValueError("done")

    monkeypatch.setattr(Pipeline, "from_pretrained", work)
    _, _, err = run("generate", TWO)
    assert "\\x1b" not in err
    assert "\\r" not in err
    assert "\x1b[A" in err


def test_a_file_name_that_no_encoding_has_is_printed(run_lines):
    code, out, err = run_lines("layout", "a cat", "--output", "a\udcff\x1b.png")
    assert (code, out, err) == (0, ["a\\udcff\\x1b.png"], [])


def test_a_very_long_message_loses_its_middle(failure, no_model):
    line = failure("generate", TWO, "--weights", f"1,{'x' * 100_000}")
    assert len(line) < 2100


def test_a_message_in_the_middle_of_a_bar_has_a_line_of_its_own(run, monkeypatch):
    def interrupted(*args, **kwargs):
        from tqdm import tqdm

        for _ in tqdm(range(3), desc="work"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "from_pretrained", interrupted)
    code, _, err = run("generate", TWO)
    assert code == 130
    assert err.splitlines()[-1] == "stal: interrupted"


def test_versions_are_quick_to_have(run_lines):
    code, out, err = run_lines("--version")
    assert (code, err) == (0, [])
    names = [line.split()[0] for line in out]
    assert names[:4] == ["stal", "torch", "diffusers", "transformers"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--num_inference_steps", "4"], "--steps"),
        (["--num-inference-steps", "4"], "--steps"),
        (["--num-images-per-prompt", "4"], "--num-images"),
        (["--guidance_scale", "4"], "--guidance-scale"),
        (["--torch_dtype", "float16"], "--dtype"),
        (["-n", "4"], "--num-images"),
        (["-W", "64"], "--width"),
        (["--CFG", "64"], "--guidance-scale"),
        (["--heigth", "64"], "--height"),
        (["--atention", "plain"], "--attention"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_unknown_option_gets_a_hint(run_lines, no_model, arguments, hint):
    code, _, err = run_lines("generate", TWO, *arguments)
    assert code == 2
    assert f"No such option: {arguments[0]}" in err[-1]
    assert hint in err[-1].removeprefix(f"Error: No such option: {arguments[0]}")


def test_a_number_with_an_exponent_is_told_how_to_be_written(run_lines, no_model):
    code, _, err = run_lines("generate", TWO, "--steps", "1e3")
    assert code == 2
    assert "in digits alone, like 1000" in err[-1]


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


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["--version"]], ids=" ".join
)
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
    assert ("Usage: stal" in result.stdout) == ("--help" in arguments)
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
