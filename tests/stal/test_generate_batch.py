"""`stal generate-batch`: every row has its picture or its error, once, whatever happens."""

import errno
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import warnings
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import stal.batch
from stal import picture, runs
from stal.pipeline import Pipeline
from stal.settings import Settings
from stal.shards.index import read_index
from stal.shards.rows import PromptRow
from stal.shards.run import MOST_UNEXPECTED, Run, Task
from stal.shards.shard import ShardFolder

pytestmark = pytest.mark.needs("pyarrow", "webdataset")

PROMPTS = [
    "a red circle",
    "a green star",
    "a blue ring above a red square",
    "a yellow cross",
    "a red star",
    "a blue circle",
    "a green square",
]
TEXT = "\n".join(PROMPTS)
OPTIONS = ("--output", "out", "--steps", 2, "--shard-size", 3, "--max-rows", 2, "--quiet")


@pytest.fixture
def batch(run, tmp_path, pipe, monkeypatch):
    """batch(text, *options, name=) -> exit code, stdout, stderr of a run in tmp_path/out."""
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *args, **named: pipe)

    def call(text, *options, name="p.txt"):
        (tmp_path / name).write_text(text)
        return run("generate-batch", "--prompts", name, *OPTIONS, *options)

    return call


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Folders that commands have left, by their prompts and options."""
    return tmp_path_factory.mktemp("kept"), {}


@pytest.fixture
def drawn(batch, tmp_path, kept):
    """drawn(text, *options): makes tmp_path/out what the command leaves there, drawn once."""
    base, folders = kept

    def make(text=TEXT, *options):
        options = options if options != ("--format", "png") else ()  # as without
        if (text, options) not in folders:
            assert batch(text, *options)[0] == 0
            folders[text, options] = base / str(len(folders))
            shutil.copytree(tmp_path / "out", folders[text, options])
        else:
            shutil.copytree(folders[text, options], tmp_path / "out")

    return make


def entries(folder):
    """Those of all shards, by row."""
    found = [each for path in sorted(folder.glob("shard-*.parquet")) for each in read_index(path)]
    assert [each.row for each in found] == list(range(len(found)))
    return found


def files(folder):
    """What is in a folder, and in tar files there, but for the lock."""
    kept = {}
    for path in folder.rglob("*"):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                members = {name: tar.extractfile(name).read() for name in tar.getnames()}
            kept |= {f"{path.name}/{name}": data for name, data in members.items()}
        elif path.is_file() and path.name != ".lock":
            kept[str(path.relative_to(folder))] = path.read_bytes()
    return kept


def check_alike(found, expected):
    """Two folders of one command: pictures differ in their last bits by who shared the batch."""
    assert found.keys() == expected.keys()
    for name, data in found.items():
        one, two = io.BytesIO(data), io.BytesIO(expected[name])
        if name.endswith(".png"):
            assert np.abs(pixels(Image.open(one)) - pixels(Image.open(two))).max() <= 2
        elif name.endswith(".parquet"):
            assert timeless(one) == timeless(two)
        else:
            assert data == expected[name]


def timeless(index):
    """The entries of an index without what runs of one command differ in."""
    return [{**e.to_json(), "seconds": None, "sha256": None} for e in read_index(index)]


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.filterwarnings("ignore:the layout is of another prompt")
def test_every_row_has_the_picture_that_the_pipeline_draws_or_its_error(batch, tmp_path, pipe):
    layout = {"version": 1, "prompt": "a red star", "relations": [], "aspect": 1.0}
    box = [0.0, 0.5, 0.5, 1.0]
    layout["objects"] = [{"phrase": "a red star", "noun": "star", "box": box}]
    rows = [
        {"prompt": "a red circle", "id": "first"},
        {"prompt": "a green star", "seed": 5, "steps": 3, "guidance_scale": 2.0},
        {"prompt": "a blue ring", "attention": "plain", "id": 3},
        {"prompt": "a red star", "layout": layout, "weights": [1.5]},
        {"prompt": "a blue circle", "steps": 0},
        {"prompt": "a blue circle", "width": 24, "negative_prompt": "a red circle"},
        {"prompt": " "},
        {"prompt": "a blue circle", "weights": [1, 2, 3, 4]},
        {"prompt": "a blue\x07 \x1bcircle", "layout": {**layout, "prompt": "a cat"}},
    ]
    text = "\n".join([*map(json.dumps, rows), "{", ""])
    code, out, err = batch(text, "--seed", 10, name="p.jsonl")
    assert (code, out) == (3, "out: 6 pictures in 4 shards\n")
    why = "out/shard-*.parquet have why, under error"
    assert err == f"stal: 4 of 10 rows have no picture: {why}\n"
    found = entries(tmp_path / "out")
    assert [(each.line, each.seed) for each in found] == [
        *((i + 1, {1: 5}.get(i, 10 + i)) for i in range(9)),
        (10, None),
    ]
    assert [each.id for each in found[:4]] == ["first", None, "3", None]
    assert [each.prompt for each in found] == [*(row["prompt"] for row in rows), None]
    wrong = {each.row: each.error for each in found if each.error is not None}
    assert wrong[4] == "line 5: steps must be a positive integer, got 0"
    assert wrong[6].startswith("line 7: prompt must not be empty")
    assert wrong[7].startswith("line 8: weights must be (steps, objects) = (2, 1)")
    assert wrong[9].startswith("line 10: a row must be a JSON object, got expecting")
    assert [each.file for each in found if each.error] == [None] * 4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe.prepare([rows[8]["prompt"]], layouts=[rows[8]["layout"]])
    spoken = {8: "\n".join(str(each.message) for each in caught)}
    assert spoken[8]
    for each in found:
        if each.error is not None:
            assert (each.sha256, each.seconds, each.settings, each.layout) == (None,) * 4
            continue
        path = tmp_path / "out" / each.file
        assert hashlib.sha256(path.read_bytes()).hexdigest() == each.sha256
        assert each.seconds > 0
        assert (each.warnings or "") == spoken.get(each.row, "")
        row = {name: value for name, value in rows[each.row].items() if name != "id"}
        alone = pipe(**{"steps": 2, "seed": 10 + each.row, **row})
        assert np.abs(pixels(Image.open(path)) - pixels(alone.images[0])).max() <= 2
        record = picture.read_record(path)
        assert record == alone.settings
        inside = {"prompt": each.prompt, "seeds": [each.seed]}
        inside["layout"] = json.loads(each.layout)
        assert {**json.loads(each.settings), **inside} == record
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        ".lock",
        "command.json",
        *("shard-00000", "shard-00000.parquet", "shard-00001", "shard-00001.parquet"),
        *("shard-00002", "shard-00002.parquet", "shard-00003", "shard-00003.parquet"),
    ]


def test_a_text_that_is_no_unicode_is_in_the_index_as_it_can_be(batch, tmp_path):
    assert batch(json.dumps({"prompt": "a \ud83d star"}), name="p.jsonl")[0] == 3
    (entry,) = entries(tmp_path / "out")
    assert entry.prompt == "a \\ud83d star"
    assert entry.error.startswith("line 1: prompt must be a text of valid Unicode, got")


def test_tar_files_are_read_by_webdataset(drawn, tmp_path):
    from webdataset import WebDataset

    drawn(TEXT, "--format", "webdataset")
    found = entries(tmp_path / "out")
    tars = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert [os.path.basename(tar) for tar in tars] == [f"shard-0000{i}.tar" for i in range(3)]
    samples = list(WebDataset(tars, shardshuffle=False))
    assert [sample["__key__"] + ".png" for sample in samples] == [each.file for each in found]
    for sample, each in zip(samples, found, strict=True):
        assert hashlib.sha256(sample["png"]).hexdigest() == each.sha256
        assert sample["txt"].decode() == each.prompt
        assert json.loads(sample["json"]) == json.loads(each.settings)


def test_a_run_that_is_done_draws_nothing_and_says_the_same(batch, tmp_path, monkeypatch):
    text = TEXT + "\n \n\0\n"
    first = batch(text)
    before = files(tmp_path / "out")
    monkeypatch.setattr(Pipeline, "from_pretrained", None)
    assert batch(text) == first
    assert files(tmp_path / "out") == before


def test_a_picture_is_drawn_again_by_generate(drawn, run, tmp_path):
    drawn()
    file = tmp_path / "out" / "shard-00000" / "000000002.png"
    record = picture.read_record(file)
    picture.save(Image.open(file), "same.png", {k: v for k, v in record.items() if k != "model"})
    code, _, err = run("generate", "--from", "same.png", "--output", "again.png", "--quiet")
    assert (code, err) == (0, "")
    assert np.abs(pixels(Image.open("again.png")) - pixels(Image.open(file))).max() <= 2


def test_prompts_come_from_stdin_too(drawn, run, tmp_path, monkeypatch):
    drawn()
    expected = files(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "file")
    stdin = SimpleNamespace(buffer=io.BytesIO(TEXT.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("generate-batch", "--prompts", "-", *OPTIONS)[0] == 0
    check_alike(files(tmp_path / "out"), expected)
    other = SimpleNamespace(buffer=io.BytesIO(TEXT.replace("yellow", "blue").encode()))
    monkeypatch.setattr(sys, "stdin", other)
    code, _, err = run("generate-batch", "--prompts", "-", *OPTIONS)
    # It is done, as far as anybody can tell who does not wait for the end of the stream.
    assert (code, "got another line 4" in err) == (1, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--steps", 3), "output must be a folder of this command, got out, one with steps 2"),
        (("--shard-size", 4), "got out, one with shard_size 3 instead of 4: name a new one"),
        (("--seed", 1), "got out, one with seed 0 instead of 1: name a new one"),
        (("--format", "webdataset"), 'got out, one with format "png" instead of "webdataset"'),
        (("--dtype", "bfloat16"), 'with dtype "float32" instead of "bfloat16": name a new one'),
        (("--lora", "ink.safetensors:2"), 'with lora [] instead of ["ink.safetensors:2"]: name'),
        (("--negative-prompt", "a star"), 'with negative_prompt "" instead of "a star": name'),
    ],
    ids=lambda change: change[0] if isinstance(change, tuple) else "",
)
def test_a_folder_of_another_command_is_refused(batch, drawn, tmp_path, change, message):
    drawn("a red circle")
    before = files(tmp_path / "out")
    code, _, err = batch("a red circle", *change)
    assert (code, message in err) == (1, True)
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (TEXT.replace("yellow", "blue"), "another line 4"),
        (TEXT + "\na red ring", "another line 8"),
        ("\n".join(PROMPTS[:5]), "none after line 5"),
        ("\n".join(PROMPTS[:3]), "none for shard 1"),
    ],
    ids=["changed", "longer", "shorter", "fewer shards"],
)
def test_a_folder_of_other_prompts_is_refused(batch, drawn, tmp_path, text, got):
    drawn()
    before = files(tmp_path / "out")
    code, _, err = batch(text)
    rule = "prompts must be those that out has pictures of"
    assert (code, err) == (1, f"stal: {rule}, got {got}: name a new output\n")
    assert files(tmp_path / "out") == before


def test_folders_of_others_are_refused(batch, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, _, err = batch(TEXT)
    message = "output must be a folder of `stal generate-batch`, got out: name a new one"
    assert (code, err) == (1, f"stal: {message}\n")
    (tmp_path / "out" / "mine.txt").unlink()
    with runs.held(tmp_path / "out"):
        assert "must not be in use by another run" in batch(TEXT)[2]
    (tmp_path / "out" / "command.json").write_text('{"methods": []}')
    assert "must be of `stal generate-batch`, got something else" in batch(TEXT)[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", 2), "workers must come with --engine ray, got 2"),
        (("--address", "auto"), "address must come with --engine ray, got auto"),
        (("--optimize", "online"), "optimize must be left out, got online: rows share"),
        (("--sampler", "best"), "sampler must be "),
        (("--eta", 2), "eta must lie in [0, 1], got 2.0"),
        (("--prompts", "none.txt"), "prompts must be a file, got none.txt"),
        (("--prompts", "empty.txt"), "prompts must have at least one row, got none in empty.txt"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_no_row_can_be_drawn_with_is_refused(batch, tmp_path, options, message):
    (tmp_path / "empty.txt").write_text("\n \n")
    code, out, err = batch(TEXT, *options)
    assert (code, out) == (1, "")
    assert err.startswith(f"stal: {message}")
    assert not list(tmp_path.glob("out/shard-*"))


@pytest.mark.parametrize("format", ["png", "webdataset"])
def test_a_full_disk_is_told_and_the_next_run_goes_on(batch, drawn, tmp_path, monkeypatch, format):
    drawn(TEXT, "--format", format)
    expected = files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    real, seen = os.fsync, 0
    for call in range(1, 60):
        # Each run has room for one more write than the run before, of what that left.
        calls = iter(range(1000))

        def full(file, calls=calls, call=call):
            if next(calls) == call:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            code, _, err = batch(TEXT, "--format", format)
        if code == 0:
            break
        seen += 1
        fix = "make room and run the same command again, it goes on where it stopped"
        assert (code, err.endswith(f": No space left on device: {fix}\n")) == (1, True)
        for path in (tmp_path / "out").glob("shard-*.parquet"):
            for each in read_index(path):
                if format == "png":
                    data = (tmp_path / "out" / each.file).read_bytes()
                    assert hashlib.sha256(data).hexdigest() == each.sha256
    assert seen > 5
    assert code == 0
    check_alike(files(tmp_path / "out"), expected)


class Failing:
    """An engine that fails as it is told, and has one picture for the rest."""

    def __init__(self, pipe, failures):
        self.failures, self.count = failures, 0
        self.result = pipe("a red circle", steps=1)

    def submit(self, request):
        future = Future()
        failure = self.failures.get(self.count)
        self.count += 1
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(self.result)
        return future


def rows_of(count):
    return [PromptRow(i, i + 1, {"prompt": "a red circle"}) for i in range(count)]


def test_other_prompts_are_refused_in_an_open_shard(tmp_path, pipe):
    task = Task(ShardFolder(tmp_path, "png"), 4, Settings(), 0)
    drawn = []
    first = Run(
        task,
        Failing(pipe, {}),
        1,
        stop=lambda: len(drawn) == 3,
        progress=lambda: drawn.append(1),
    )
    first.draw(rows_of(4))
    assert first.stopped
    others = [PromptRow(i, i + 1, {"prompt": "a blue square"}) for i in range(4)]
    with pytest.raises(ValueError, match=r"got another line 1: name a new output"):
        Run(task, Failing(pipe, {}), 1).draw(others)
    with pytest.raises(ValueError, match=r"got none after line 2: name a new output"):
        Run(task, Failing(pipe, {}), 1).draw(rows_of(2))


def test_a_failure_of_one_row_is_in_the_index(tmp_path, pipe):
    failures = {1: RuntimeError("odd"), 3: MemoryError("too large"), 5: RuntimeError("last")}
    task = Task(ShardFolder(tmp_path, "png"), 4, Settings(), 0)
    Run(task, Failing(pipe, failures), 2).draw(rows_of(6))
    assert [each.error for each in entries(tmp_path)] == [
        *(None, "line 2: RuntimeError: odd", None),
        *("line 4: too large", None, "line 6: RuntimeError: last"),
    ]


def test_a_machine_that_fails_stops_the_run_and_blames_no_row(tmp_path, pipe):
    count = MOST_UNEXPECTED + 2
    broken = {i: RuntimeError("the device is lost") for i in range(2, count)}
    task = Task(ShardFolder(tmp_path, "png"), count, Settings(), 0)
    with pytest.raises(RuntimeError, match="the device is lost"):
        Run(task, Failing(pipe, broken), 2).draw(rows_of(count))
    assert entries(tmp_path) == []
    engine = Failing(pipe, {})
    Run(task, engine, 2).draw(rows_of(count))
    assert engine.count == count - 2
    assert [each.error for each in entries(tmp_path)] == [None] * count


def test_a_run_that_is_asked_to_stop_keeps_what_it_has(tmp_path, pipe):
    task = Task(ShardFolder(tmp_path, "png"), 3, Settings(), 0)
    engine = Failing(pipe, {})
    drawn = []
    run = Run(task, engine, 1, stop=lambda: len(drawn) == 4, progress=lambda: drawn.append(1))
    run.draw(rows_of(8))
    assert (run.stopped, engine.count) == (True, 4)
    assert len(entries(tmp_path)) == 3
    told = []
    rest = Run(task, engine, 1, progress=lambda: told.append(1))
    rest.draw(rows_of(8))
    assert len(told) == 5  # all but those of the first shard, one of them drawn before
    assert (rest.stopped, engine.count) == (False, 8)
    assert len(entries(tmp_path)) == 8


def test_pictures_that_were_torn_are_drawn_again(tmp_path, pipe):
    task = Task(ShardFolder(tmp_path, "png"), 3, Settings(), 0)
    engine = Failing(pipe, {})
    drawn = []
    run = Run(task, engine, 1, stop=lambda: len(drawn) == 2, progress=lambda: drawn.append(1))
    run.draw(rows_of(3))
    partial = tmp_path / ".shard-00000"
    (partial / "pictures" / "000000000.png").write_bytes(b"torn")
    (partial / "pictures" / ".000000002.png.0123abcd.tmp").write_bytes(b"torn")
    with open(partial / "rows.jsonl", "ab") as file:
        file.write(b'{"row": 2, "li')
    Run(task, engine, 1).draw(rows_of(3))
    assert engine.count == 4
    assert sorted(path.name for path in (tmp_path / "shard-00000").iterdir()) == [
        f"00000000{i}.png" for i in range(3)
    ]
    for each in entries(tmp_path):
        data = (tmp_path / each.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == each.sha256


def test_a_shard_whose_index_is_deleted_is_drawn_again(batch, drawn, tmp_path):
    for format in ("png", "webdataset"):
        drawn(TEXT, "--format", format)
        expected = files(tmp_path / "out")
        (tmp_path / "out" / "shard-00001.parquet").unlink()
        assert batch(TEXT, "--format", format)[0] == 0
        check_alike(files(tmp_path / "out"), expected)
        (tmp_path / "out").rename(tmp_path / format)


def test_requests_are_read_as_the_engine_takes_them(tmp_path, pipe):
    task = Task(ShardFolder(tmp_path, "png"), 100, Settings(), 0)
    read = []

    def rows():
        for row in rows_of(30):
            read.append(row)
            yield row

    most = []
    engine = Failing(pipe, {})
    run = Run(task, engine, 4, progress=lambda: most.append(len(read)))
    run.draw(rows())
    assert all(ahead <= i + 5 for i, ahead in enumerate(most))


def test_the_engine_is_that_of_the_batch_package(batch, monkeypatch):
    made = []
    real = stal.batch.Engine

    def engine(pipe, *, max_rows):
        made.append(max_rows)
        return real(pipe, max_rows=max_rows)

    monkeypatch.setattr(stal.batch, "Engine", engine)
    assert batch("a red circle")[0] == 0
    assert made == [2]
