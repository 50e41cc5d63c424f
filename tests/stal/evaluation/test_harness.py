"""`stal evaluate`: what a run leaves behind, and that kills and full disks cost nothing."""

import csv
import errno
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import stal
from stal import picture, runs
from stal.evaluation import harness, report
from stal.evaluation.detectors import pixels
from stal.evaluation.harness import ResultRow, check_command, opened, read_rows, run
from stal.evaluation.metrics import METRICS, Detection
from stal.evaluation.prompt_files import parsed
from stal.layout import place
from stal.model.model import bundled_model
from stal.prompts import parse
from stal.settings import Settings

METHODS = ("plain", "ours")
PIPE: Any = SimpleNamespace(model=SimpleNamespace(device="cpu"))


def drawn(method, pipe, prompts, *, layouts, seeds, settings):
    """A grey picture whose level says method and seed."""
    return [
        SimpleNamespace(
            images=[Image.new("RGB", (8, 8), (METHODS.index(method) * 100 + seed % 100,) * 3)],
            settings={"prompt": prompt, "seeds": [seed]},
        )
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def seen(images, wanted):
    """Every object, where ours drew it, with an attribute by the picture's level."""
    found = []
    for image, objects in zip(images, wanted, strict=True):
        level = image.getpixel((0, 0))[0]
        boxes = [(0.1 + 0.2 * k, 0.1, 0.2 + 0.2 * k, 0.2) for k in range(len(objects))]
        right = level >= 100 or level % 3 == 0
        found.append(
            [
                Detection(o.noun, o.attributes if right else ("black",), box, 0.9)
                for o, box in zip(objects, boxes, strict=True)
            ]
        )
    return found


CASES = [
    parsed(f"a red circle to the left of a {colour} {shape}")
    for colour in ("blue", "green", "pink")
    for shape in ("square", "ring", "star")
] + [parsed("a red circle"), parsed("a blue ring")]
LAYOUTS = [place(parse(case.prompt)) for case in CASES]


def go(
    folder: Path, *, draw=drawn, seeds=2, batch=3, cases=CASES, scorer=None, background=None
) -> list[ResultRow]:
    folder.mkdir(exist_ok=True)
    return run(
        folder,
        cases,
        pipe=PIPE,
        draw=draw,
        methods=METHODS,
        layouts=LAYOUTS[: len(cases)],
        seeds=seeds,
        settings=Settings(),
        detector=seen,
        scorer=scorer,
        background=background,
        batch=batch,
        quiet=True,
    )


def timeless(rows: list[ResultRow]) -> list[ResultRow]:
    """Rows without what differs from run to run."""
    return [replace(row, seconds=0.0, memory_mb=None, batch=0) for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "finished"
    go(folder)
    return folder


# A run


def test_a_run_has_a_row_and_a_picture_of_each_image(finished):
    rows = read_rows(finished)
    keys = {(row.method, row.index, row.seed) for row in rows}
    # Seed k of prompt i is k * prompts + i.
    assert keys == {(m, i, k * 11 + i) for m in METHODS for i in range(11) for k in range(2)}
    assert len(rows) == len(keys)
    for row in rows:
        assert picture.read_record(finished / row.image)["seeds"] == [row.seed]
        assert row.prompt == CASES[row.index].prompt
        assert row.correct == all("black" not in d["name"] for d in row.detections)
        assert [o["phrase"] for o in row.layout] == [o.phrase for o in CASES[row.index].objects]
        assert row.seconds >= 0
        assert row.memory_mb is None or row.memory_mb >= 0
    assert {row.batch for row in rows} == {1, 3}


def test_rows_come_by_prompt_seed_and_method(finished):
    rows = go(finished)
    assert [(r.index, r.seed, r.method) for r in rows] == sorted(
        ((r.index, r.seed, r.method) for r in rows),
        key=lambda key: (*key[:2], METHODS.index(key[2])),
    )


def test_a_finished_run_draws_nothing(finished):
    def never(*args, **kwargs):
        raise AssertionError("drawn again")

    before = (finished / "results.jsonl").read_bytes()
    assert len(go(finished, draw=never)) == 44
    assert (finished / "results.jsonl").read_bytes() == before


def test_methods_take_turns(tmp_path):
    go(tmp_path, cases=CASES[:4], seeds=1, batch=2)
    order = [row.method for row in read_rows(tmp_path)]
    assert order == ["plain"] * 2 + ["ours"] * 2 + ["plain"] * 2 + ["ours"] * 2


def test_background_is_compared_with_what_the_prompt_states(tmp_path):
    stated = ("", " on a black background", " on a grey background", " on a white background")
    cases = [parsed(f"a red circle{background}") for background in stated]
    rows = go(
        tmp_path,
        cases=cases,
        seeds=1,
        background=lambda image: "gray" if image.getpixel((0, 0))[0] >= 100 else "black",
    )
    shown = {method: [r.background for r in rows if r.method == method] for method in METHODS}
    assert shown == {"plain": [None, True, False, False], "ours": [None, False, True, False]}
    assert {row.background for row in go(tmp_path / "without")} == {None}


def test_clip_scores_picture_and_crops(tmp_path):
    from stal.model import clip

    scorer = clip.load(bundled_model() / "clip")
    row = go(tmp_path, cases=CASES[:1], seeds=1, scorer=scorer)[0]
    image = pixels(Image.open(tmp_path / row.image))
    whole = scorer.images(image[None]) @ scorer.texts([row.prompt]).t()
    assert row.clip_global == pytest.approx(whole.item(), abs=1e-5)
    boxes = [placed["box"] for placed in row.layout]
    parts = scorer.images(clip.crops(image, boxes, size=scorer.preprocessing.size))
    texts = scorer.texts(["a photo of a red circle", "a photo of a blue square"])
    assert row.clip_local == pytest.approx((parts * texts).sum(-1).tolist(), abs=1e-5)


METERED = """
import torch
from stal.evaluation.harness import Meter
meter = Meter("cpu")
with meter:
    block = torch.ones(16_000_000)
    block += 1
print(meter.seconds, meter.peak_mb)
del block
with meter:
    pass
print(meter.seconds, meter.peak_mb)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is unknown here")
def test_a_meter_sees_time_and_memory():
    # Of a process of its own: the kernel may take idle pages from a large one at any moment.
    command = [sys.executable, "-c", METERED]
    root = Path(stal.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    (seconds, large), (_, small) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert seconds > 0
    assert large > 60
    assert small < large


# Kills and full disks

KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_harness as t

def slow(*args, **kwargs):
    time.sleep(0.01)
    return t.drawn(*args, **kwargs)

folder = Path(sys.argv[1])
rng = random.Random(int(sys.argv[3]))
kills = 0
for attempt in range(16):
    child = os.fork()
    if child == 0:
        with t.opened(folder, {"methods": list(t.METHODS)}):
            t.go(folder, draw=slow)
        os._exit(0)
    if attempt < 15:
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    kills += os.WIFSIGNALED(status)
print(kills, status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_run_that_is_killed_at_random_points_loses_and_repeats_nothing(tmp_path, finished):
    folder = tmp_path / "killed"
    root = Path(stal.__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent), "0"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert result.returncode == 0, result.stderr
    kills, status = map(int, result.stdout.split())
    # The whole run sleeps for longer than a child lives.
    assert kills >= 1
    assert status == 0
    expected = timeless(read_rows(finished))
    rows = timeless(read_rows(folder))
    assert Counter(map(str, rows)) == Counter(map(str, expected))
    for row in rows:
        with Image.open(folder / row.image) as image:
            image.load()
    assert list(folder.rglob("*.tmp")) == []
    assert len(list(folder.rglob("*.png"))) == len(rows)


@pytest.mark.parametrize("cut", [1, 2, 50, 300])
def test_a_torn_last_line_is_drawn_again(tmp_path, finished, cut):
    folder = tmp_path / "torn"
    shutil.copytree(finished, folder)
    data = (folder / "results.jsonl").read_bytes()
    (folder / "results.jsonl").write_bytes(data[:-cut])
    assert len(read_rows(folder)) == 43
    assert timeless(go(folder)) == timeless(go(finished))
    assert len((folder / "results.jsonl").read_bytes().splitlines()) == 44


@pytest.mark.parametrize("lost", ["deleted", "torn", "emptied"])
def test_a_lost_picture_is_drawn_again(tmp_path, finished, lost):
    folder = tmp_path / "lost"
    shutil.copytree(finished, folder)
    one, other = (folder / read_rows(folder)[i].image for i in (3, 40))
    if lost == "deleted":
        one.unlink()
    else:
        one.write_bytes(other.read_bytes()[: 0 if lost == "emptied" else 70])
    with pytest.warns(UserWarning, match="1 pictures of .*lost are lost and drawn again"):
        rows = go(folder)
    assert timeless(rows) == timeless(go(finished))
    assert len((folder / "results.jsonl").read_bytes().splitlines()) == 44
    with Image.open(one) as image:
        image.load()


@pytest.mark.parametrize("line", ["{}", "nothing", '{"method": "plain"}', "[1]"])
def test_another_broken_line_is_named(tmp_path, finished, line):
    folder = tmp_path / "broken"
    shutil.copytree(finished, folder)
    lines = (folder / "results.jsonl").read_text().splitlines()
    lines[1] = line
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"results.jsonl:2: must be a row of `stal evaluate`"):
        go(folder)


def test_rows_of_no_image_of_this_run_are_refused(tmp_path, finished):
    folder = tmp_path / "other"
    shutil.copytree(finished, folder)
    with pytest.raises(ValueError, match="must hold images of this command, each once"):
        go(folder, seeds=1)
    lines = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(ValueError, match="must hold images of this command, each once"):
        go(folder)


@pytest.mark.parametrize("call", [1, 2, 4, 9, 30])
def test_a_full_disk_is_told_and_the_next_run_goes_on(tmp_path, finished, monkeypatch, call):
    real, calls = os.fsync, iter(range(1, 10_000))

    def fsync(file):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left on device"):
            go(tmp_path)
    assert len(read_rows(tmp_path)) < 44
    assert timeless(go(tmp_path)) == timeless(go(finished))


def test_rows_half_written_on_a_full_disk_are_drawn_again(tmp_path, finished, monkeypatch):
    """The file takes some bytes of a write, then none."""
    real = open

    class Full(io.FileIO):
        def write(self, data):
            room = 5000 - self.tell()
            if room <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(bytes(data)[:room])

    def small(path, mode="r", **options):
        rows = mode == "ab" and path.name == "results.jsonl"
        return Full(path, "ab") if rows else real(path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "open", small, raising=False)
        with pytest.raises(OSError, match=r"No space left on device: '.*results.jsonl'"):
            go(tmp_path)
    assert (tmp_path / "results.jsonl").stat().st_size == 5000
    assert timeless(go(tmp_path)) == timeless(go(finished))


def test_other_errors_keep_their_words(tmp_path):
    def broken(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError, match="Permission denied"):
        go(tmp_path, draw=broken)


# The folder

MINE = {"methods": ["plain", "ours"], "seeds": 2, "steps": None}


@pytest.fixture
def used(tmp_path, finished) -> Path:
    folder = tmp_path / "used"
    with opened(folder, MINE):
        shutil.copy(finished / "results.jsonl", folder)
    return folder


def test_a_folder_of_the_same_command_is_welcome(used):
    check_command(used, MINE)
    check_command(used, {"seeds": 2})
    with opened(used, MINE):
        assert json.loads((used / "command.json").read_text())["seeds"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 3}, "with seeds 2 instead of 3: name a new one"),
        ({"methods": ["plain"]}, r'with methods \["plain", "ours"\] instead of \["plain"\]'),
        ({"steps": 20}, "with steps null instead of 20"),
        ({"model": "other"}, 'with model null instead of "other"'),
    ],
    ids=str,
)
def test_a_folder_of_another_command_is_refused_and_left(used, change, message):
    before = {path: path.read_bytes() for path in used.iterdir()}
    with pytest.raises(ValueError, match=message), opened(used, {**MINE, **change}):
        pass
    assert before == {path: path.read_bytes() for path in used.iterdir()}


def test_a_command_without_an_image_yet_is_replaced(tmp_path):
    with opened(tmp_path, MINE):
        pass
    with opened(tmp_path, {**MINE, "seeds": 5}):
        assert json.loads((tmp_path / "command.json").read_text())["seeds"] == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "", "output must be a folder of `stal evaluate`"),
        ("command.json", "{", "command.json must be of `stal evaluate`"),
        ("command.json", '{"version": 1}', "command.json must be of `stal evaluate`"),
        ("command.json", "[]", "command.json must be of `stal evaluate`"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message), opened(tmp_path, MINE):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output must be a folder, got the file"):
        check_command(tmp_path / "file", MINE)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks on this system")
def test_two_runs_do_not_share_a_folder(used):
    with opened(used, MINE):
        again = pytest.raises(ValueError, match="output must not be in use by another run")
        with again, opened(used, MINE):
            pass
    with opened(used, MINE):
        pass


def test_fingerprints_tell_models_apart(pipe):
    before = harness.fingerprint(pipe)
    weight = next(iter(pipe.model.unet.parameters()))
    with torch.no_grad():
        weight.flatten()[0].add_(1)
        changed = harness.fingerprint(pipe)
        weight.flatten()[0].sub_(1)
    assert before != changed


# The report


@pytest.fixture(scope="module")
def written(finished) -> Path:
    report.write_report(finished, go(finished), METHODS, title="a <title>")
    return finished


def test_the_summary_has_every_metric_and_difference(written):
    lines = list(csv.DictReader(io.StringIO((written / "summary.csv").read_text())))
    by_key = {(x["kind"], x["metric"], x["method"], x["minus"]): x for x in lines}
    assert len(by_key) == len(lines) == 3 * len(METRICS) * 3
    rows = read_rows(written)
    for method in METHODS:
        mine = [row for row in rows if row.method == method]
        share = sum(row.correct for row in mine) / len(mine)
        line = by_key["all", "correct", method, ""]
        assert float(line["value"]) == pytest.approx(share, abs=1e-5)
        assert float(line["low"]) <= share <= float(line["high"])
        assert line["prompts"] == "11"
        assert by_key["1 object", "correct", method, ""]["prompts"] == "2"
    gain = by_key["all", "correct", "ours", "plain"]
    assert float(gain["value"]) == pytest.approx(
        float(by_key["all", "correct", "ours", ""]["value"])
        - float(by_key["all", "correct", "plain", ""]["value"]),
        abs=1e-5,
    )
    # No CLIP was given.
    assert by_key["all", "clip_global", "ours", ""]["value"] == ""


def test_the_summary_in_markdown_has_the_tables(written):
    text = (written / "summary.md").read_text()
    assert text.startswith("# a &lt;title&gt;\n\n11 prompts, 22 images a method.")
    rows = [line for line in text.splitlines() if line.startswith("| ours |")]
    assert len(rows) == 2
    assert rows[0].startswith("| ours | 100.0% [71.5, 100.0] | 100.0%")
    assert "## All correct, by kind of prompt" in text
    assert "## ours minus each other method" in text
    widths = [
        {line.count("|") for line in part.splitlines() if line.startswith("|")}
        for part in text.split("\n\n")
    ]
    assert all(len(width) <= 1 for width in widths)


def test_one_method_and_one_kind_make_a_report_too(tmp_path):
    rows = [row for row in go(tmp_path, cases=CASES[:1], seeds=1) if row.method == "ours"]
    report.write_report(tmp_path, rows, ["ours"], title="one")
    text = (tmp_path / "summary.md").read_text()
    assert "by kind" not in text
    assert "minus" not in text


@pytest.mark.parametrize("name", ["all_correct.png", "metrics.png", "contact_sheet.png"])
def test_plots_and_contact_sheet_are_pictures(written, name):
    with Image.open(written / name) as image:
        image.load()
        assert min(image.size) > 200


def test_the_contact_sheet_shows_all_methods_of_every_kind_and_stays_small(written):
    rows = read_rows(written)
    chosen = report._spread(rows, 4)
    kinds = {row.index: row.kind for row in rows}
    assert Counter(kinds[index] for index, _ in chosen) == {"2 objects": 2, "1 object": 2}
    whole = report.contact_sheet(written, rows, METHODS)
    with Image.open(io.BytesIO(whole)) as image:
        # Eleven prompts by two methods, 128 pixels each.
        assert image.width == 2 * (128 + 8) + 8
        assert image.height == 25 + 11 * (25 + 128 + 8)
    small = report.contact_sheet(written, rows, METHODS, max_bytes=len(whole) // 2)
    assert len(small) <= len(whole) // 2
    least = report.contact_sheet(written, rows, METHODS, max_bytes=1)
    with Image.open(io.BytesIO(least)) as image:
        assert image.height == 25 + 25 + 128 + 8


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_shows_all_methods_side_by_side_with_boxes(written):
    page = Page((written / "index.html").read_text())
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    rows = read_rows(written)
    assert sorted(images) == sorted(row.image for row in rows)
    assert all((written / source).is_file() for source in images)
    classes = Counter(attrs.get("class") for _, attrs in page.tags)
    assert classes["box layout"] == sum(len(row.layout) for row in rows)
    assert classes["box seen"] == sum(len(row.detections) for row in rows)
    assert classes["correct"] == sum(row.correct for row in rows)
    assert {attrs["id"] for tag, attrs in page.tags if tag == "input"} == {
        "layout",
        "seen",
        "unequal",
    }
    assert "a <title>" in page.words


def test_what_prompts_say_cannot_break_the_page(tmp_path):
    row = go(tmp_path, cases=CASES[:1], seeds=1)[0]
    evil = replace(row, prompt='<b>"&$x', layout=[{"phrase": "<i>", "box": [0.0, 0.0, 1.0, 1.0]}])
    page = Page(report.page([evil], ["plain"], title="$title"))
    assert not {"b", "i"} & {tag for tag, _ in page.tags}
    assert '<b>"&$x' in page.words
    assert "<i>" in page.words


def test_a_prompt_without_objects_counts_for_no_share_of_right_ones(tmp_path):
    row = asdict(go(tmp_path, cases=[parsed("nothing at all")], seeds=1)[0])
    by_name = {metric.name: metric for metric in METRICS}
    assert by_name["correct"].counts(row) == (0.0, 0.0)
    assert by_name["recall"].counts(row) == (0, 0)
    assert not math.isnan(by_name["seconds"].counts(row)[0])


def test_a_picture_that_may_not_be_read_is_not_taken_for_lost(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError):
        harness._is_picture(tmp_path / "a.png")


@pytest.mark.parametrize("data", [None, b"", b"\x89PNG\r\n\x1a\n\0", b"text"])
def test_a_torn_picture_is_lost(tmp_path, data):
    if data is not None:
        (tmp_path / "a.png").write_bytes(data)
    assert not harness._is_picture(tmp_path / "a.png")
