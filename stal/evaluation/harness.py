"""Draws every prompt by every method from the same noise, and writes down what came of it.

    DIR/command.json      what was asked for; a folder of another command is refused
    DIR/results.jsonl     a row an image, appended as soon as it is judged
    DIR/images/METHOD/    the pictures, each with the settings that made it

A run that was killed goes on where it stopped: images that have a row are not drawn again, unless
their picture is gone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import struct
import time
import zlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stal import picture, runs
from stal.caller import warn
from stal.evaluation.detectors import Background, Detector, pixels
from stal.evaluation.metrics import Detection, judge
from stal.evaluation.prompt_files import PromptCase, boxes_of
from stal.files import write_atomic
from stal.layout import Layout
from stal.prompts import drawn_text, parse
from stal.runs import COMMAND, append_lines, held, json_lines, whole_lines

if TYPE_CHECKING:
    from PIL.Image import Image

    from stal.drawing import Result
    from stal.model.clip import Clip
    from stal.pipeline import Pipeline
    from stal.settings import Settings

VERSION = 2
RESULTS, IMAGES = "results.jsonl", "images"
# draw(method, pipe, prompts, layouts=, seeds=, settings=): one result a prompt.
Draw = Callable[..., "Sequence[Result]"]


@dataclass(frozen=True)
class ResultRow:
    """One image in `results.jsonl`.

    Attributes:
        method: how it was drawn.
        index: number of its prompt, from 0.
        prompt, kind: see `stal.evaluation.prompt_files.PromptCase`.
        seed: of its noise; the same for every method.
        image: file, relative to the folder of the results.
        layout: phrase and box of each object of the layout that it was drawn with.
        detections: name, box and score of everything that was seen.
        verdict: a `stal.evaluation.metrics.Verdict`.
        correct: whether all of it is right.
        background: whether it has the background that the prompt states; None where the prompt
            states none, or nothing tells what it is.
        clip_global: cosine similarity of the image and its prompt; None without CLIP.
        clip_local: of each crop at a box of the layout and "a photo of <phrase>".
        seconds: to draw it, its share of a batch.
        memory_mb: the highest memory while it was drawn above that of the loaded model, its share
            of a batch; None where the system does not tell.
        batch: images drawn together.
    """

    method: str
    index: int
    prompt: str
    kind: str
    seed: int
    image: str
    layout: list[dict[str, Any]]
    detections: list[dict[str, Any]]
    verdict: dict[str, int]
    correct: bool
    background: bool | None
    clip_global: float | None
    clip_local: list[float] | None
    seconds: float
    memory_mb: float | None
    batch: int


def run(
    folder: Path,
    cases: Sequence[PromptCase],
    *,
    pipe: Pipeline,
    draw: Draw,
    methods: Sequence[str],
    layouts: Sequence[Layout],
    seeds: int,
    settings: Settings,
    detector: Detector,
    scorer: Clip | None,
    background: Background | None = None,
    batch: int = 8,
    quiet: bool = False,
) -> list[ResultRow]:
    """Draws and judges what has no row in the folder yet.

    Seed k of prompt i is k * len(cases) + i: no two images of a method share their noise, and all
    methods draw a prompt from the same.

    Args:
        folder: existing, and held by `opened`.
        cases: the prompts.
        pipe: the model.
        draw: see `Draw`.
        methods: names that draw knows.
        layouts: one a case.
        seeds: images a prompt and method.
        settings: of every method.
        detector: see `stal.evaluation.detectors`.
        scorer: CLIP, or None to leave its columns empty.
        background: names that of a picture, or None to leave its column empty.
        batch: images drawn at once.
        quiet: no progress bar.

    Returns:
        Every row, by prompt, seed and method.

    Raises:
        ValueError: the rows of the folder are not of such a run.
        OSError: the disk is full; the same call goes on where it stopped.
    """
    from tqdm import tqdm

    rows = _with_pictures(folder, read_rows(folder))
    done = {(row.method, row.index, row.seed) for row in rows}
    pairs = [(i, k * len(cases) + i) for k in range(seeds) for i in range(len(cases))]
    strange = done - {(method, *pair) for method in methods for pair in pairs}
    if strange or len(done) != len(rows):
        raise ValueError(f"{folder / RESULTS} must hold images of this command, each once")
    meter = Meter(pipe.model.device)
    row_of = partial(_row, folder, scorer=scorer, background=background, meter=meter)
    with tqdm(total=len(pairs) * len(methods), initial=len(done), disable=quiet) as bar:
        for method, part in _parts(pairs, methods, done, batch):
            bar.set_description(method)
            chosen, placed = [cases[i] for i, _ in part], [layouts[i] for i, _ in part]
            prompts, noise = [case.prompt for case in chosen], [seed for _, seed in part]
            with meter:
                results = draw(
                    method, pipe, prompts, layouts=placed, seeds=noise, settings=settings
                )
            images = [result.images[0] for result in results]
            seen = detector(images, [case.objects for case in chosen])
            judged = [
                row_of(method, *each, batch=len(part))
                for each in zip(part, chosen, placed, results, seen, strict=True)
            ]
            append_lines(folder / RESULTS, map(asdict, judged))
            rows += judged
            bar.update(len(judged))
    order = {method: number for number, method in enumerate(methods)}
    return sorted(rows, key=lambda row: (row.index, row.seed, order[row.method]))


def _parts(
    pairs: Sequence[tuple[int, int]],
    methods: Sequence[str],
    done: Container[tuple[str, int, int]],
    batch: int,
) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Batches of (index, seed) that are not done; methods take turns."""
    for start in range(0, len(pairs), batch):
        for method in methods:
            part = [pair for pair in pairs[start : start + batch] if (method, *pair) not in done]
            if part:
                yield method, part


def _row(
    folder: Path,
    method: str,
    key: tuple[int, int],
    case: PromptCase,
    layout: Layout,
    result: Result,
    detections: Sequence[Detection],
    *,
    scorer: Clip | None,
    background: Background | None,
    meter: Meter,
    batch: int,
) -> ResultRow:
    """Saves a picture and judges it; the meter has the cost of its batch."""
    (index, seed), image = key, result.images[0]
    file = f"{IMAGES}/{method}/{index:05}-{seed}.png"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    picture.save(image, folder / file, result.settings)
    verdict = judge(detections, case.objects, case.relations, boxes_of(case, layout))
    scores = None if scorer is None else clip_scores(image, layout, scorer)
    return ResultRow(
        method=method,
        index=index,
        prompt=case.prompt,
        kind=case.kind,
        seed=seed,
        image=file,
        layout=[{"phrase": o.phrase, "box": [*o.box]} for o in layout.objects],
        detections=[
            {"name": " ".join((*d.attributes, d.noun)), "box": [*d.box], "score": d.score}
            for d in detections
        ],
        verdict=asdict(verdict),
        correct=verdict.correct,
        background=shows_background(image, case.prompt, background),
        clip_global=scores and scores[0],
        clip_local=scores and scores[1],
        seconds=meter.seconds / batch,
        memory_mb=None if meter.peak_mb is None else meter.peak_mb / batch,
        batch=batch,
    )


def shows_background(image: Image, prompt: str, background: Background | None) -> bool | None:
    """Whether a picture has the background that its prompt states; see `ResultRow`."""
    stated = parse(prompt).background.replace("grey", "gray").split()
    return background(image) in stated if background and stated else None


def texts_of(prompt: str, layout: Layout) -> list[str]:
    """What CLIP compares a picture and its crops with: the prompt, and each object."""
    return [drawn_text(prompt), *(f"a photo of {placed.phrase}" for placed in layout.objects)]


def clip_scores(image: Image, layout: Layout, scorer: Clip) -> tuple[float, list[float]]:
    """Cosine similarity of the picture and its prompt, and of each box's crop and its object.

    Raises:
        ValueError: CLIP has no tokens for a text, or not enough.
    """
    import torch

    from stal.model.clip import crops

    with torch.inference_mode():
        whole = pixels(image)
        texts = scorer.texts(texts_of(layout.prompt, layout))
        parts = crops(whole, [o.box for o in layout.objects], size=scorer.preprocessing.size)
        scores = [float((scorer.images(whole[None]) * texts[:1]).sum())]
        if len(parts):
            scores += (scorer.images(parts) * texts[1:]).sum(-1).tolist()
    return scores[0], scores[1:]


class Meter:
    """Time and peak memory of a block; memory above what is in use when the meter is made.

        meter = Meter(device)
        with meter: ...
        meter.seconds, meter.peak_mb

    On a GPU memory is what torch allocates there. Otherwise it is the resident memory of the
    process, known on Linux alone, which is too small if the kernel takes idle pages meanwhile.
    """

    def __init__(self, device: Any) -> None:
        import torch

        self.device = torch.device(device)
        self.seconds = 0.0
        self.peak_mb: float | None = None
        self._before = self._peak(reset=True)

    def __enter__(self) -> None:
        self._peak(reset=True)
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        peak = self._peak()
        self.seconds = time.perf_counter() - self._start
        if peak is not None and self._before is not None:
            self.peak_mb = max(peak - self._before, 0.0)

    def _peak(self, *, reset: bool = False) -> float | None:
        """The peak in MB since the last reset."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            if reset:
                torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        try:
            if reset:
                Path("/proc/self/clear_refs").write_text("5")
            status = Path("/proc/self/status").read_text()
        except OSError:
            return None
        lines = (line.split() for line in status.splitlines() if line.startswith("VmHWM:"))
        return next((int(line[1]) * 1024 / 1e6 for line in lines), None)


def read_rows(folder: Path) -> list[ResultRow]:
    """The rows that a folder has. A last line that was torn by a kill or a full disk is removed.

    Raises:
        ValueError: another line is no row.
    """
    path = folder / RESULTS
    rows = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            rows.append(ResultRow(**json.loads(line)))
        except (ValueError, TypeError):
            raise ValueError(f"{path}:{number}: must be a row of `stal evaluate`") from None
    return rows


def _with_pictures(folder: Path, rows: list[ResultRow]) -> list[ResultRow]:
    """The rows whose picture is there and whole; the others are removed from the folder too."""
    kept = [row for row in rows if _is_picture(folder / row.image)]
    if len(kept) < len(rows):
        lost = len(rows) - len(kept)
        warn(f"{lost} pictures of {folder} are lost and drawn again")
        write_atomic(folder / RESULTS, json_lines(map(asdict, kept)))
    return kept


def _is_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()
    except OSError as error:
        # Pillow's own have no number. Of a picture that may not be read nothing is known.
        if error.errno not in (None, errno.ENOENT):
            raise
        return False
    except (SyntaxError, ValueError, EOFError, struct.error, zlib.error):  # of a torn file
        return False
    return True


@contextmanager
def opened(folder: Path, command: Mapping[str, Any]) -> Iterator[None]:
    """Holds a folder of results for one process, and notes the command in it.

    Raises:
        ValueError: the folder holds something else, or another process.
    """
    check_command(folder, command)
    with held(folder):
        for torn in folder.rglob(".*.????????.tmp"):
            torn.unlink()  # of a run that was killed while it wrote
        if not _has_rows(folder):
            text = json.dumps({"version": VERSION, **command}, indent=2) + "\n"
            write_atomic(folder / COMMAND, text.encode())
        yield


def check_command(folder: Path, command: Mapping[str, Any]) -> None:
    """Refuses a folder that does not hold results of this command.

    One that is empty, or where a command has no image yet, is welcome. command may be a part of the
    whole: what it does not name is not compared.

    Raises:
        ValueError: it holds something else.
    """
    wanted = {"version": VERSION, **command}
    begun = _has_rows(folder)
    runs.check_command(folder, wanted, of="stal evaluate", key="methods", begun=begun)


def _has_rows(folder: Path) -> bool:
    path = folder / RESULTS
    return path.exists() and b"\n" in path.read_bytes()


def fingerprint(pipe: Pipeline) -> str:
    """Tells models apart that have one name: a hash of the first numbers of each UNet weight."""
    digest = hashlib.sha256()
    for name, weight in pipe.model.unet.state_dict().items():
        digest.update(name.encode())
        digest.update(json.dumps(weight.flatten()[:8].double().tolist()).encode())
    return digest.hexdigest()[:16]
