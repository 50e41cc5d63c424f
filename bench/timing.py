"""Timing that all benchmarks share: interleaved, in one process, medians, one kind of table."""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds a call: quantiles over the rounds."""

    p20: float
    median: float
    p80: float

    def __str__(self) -> str:
        return f"{self.median * 1e3:.3g} ({self.p20 * 1e3:.3g}-{self.p80 * 1e3:.3g})"


def interleave(
    functions: dict[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    sample_s: float = 2e-3,
    budget_s: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times functions in turn, so that whatever else the machine does disturbs them alike.

    Every second round goes backwards, for a function may leave the machine slower for the next. A
    sample is as many calls as last about `sample_s` seconds; with 0 it is one call, and there is
    none before the first, so that the functions must be warm. After 5 rounds no other begins once
    `budget_s` seconds have passed.

    Args:
        clock: returns seconds. With time.thread_time, which leaves out what other programs take of
            a core, functions must run on the calling thread alone.
    """
    calls = dict.fromkeys(functions, 1)
    for name, function in functions.items() if sample_s else ():
        function()
        start = clock()
        function()
        calls[name] = max(1, round(sample_s / (clock() - start)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 5 and time.perf_counter() - begin > budget_s:
            break
        for name in reversed(functions) if done % 2 else functions:
            function = functions[name]
            start = clock()
            for _ in range(calls[name]):
                function()
            samples[name].append((clock() - start) / calls[name])
    return {name: quantiles(values) for name, values in samples.items()}


def quantiles(values: list[float]) -> Timing:
    if len(values) == 1:
        return Timing(values[0], values[0], values[0])
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Timing(fifths[0], statistics.median(values), fifths[3])


def gpu_times(functions: dict[str, Callable[[], object]], *, rounds: int = 20) -> dict[str, Timing]:
    """Seconds on the GPU of each function, with a cold second-level cache, in turn.

    Each is captured in a CUDA graph, so that launches cost nothing.
    """
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    graphs = {}
    for name, function in functions.items():
        graphs[name] = captured(function)
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        pairs = {}
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            begin.record()
            graph.replay()
            end.record()
            pairs[name] = (begin, end)
        torch.cuda.synchronize()
        for name, (begin, end) in pairs.items():
            samples[name].append(begin.elapsed_time(end) / 1e3)
    return {name: quantiles(values) for name, values in samples.items()}


def captured(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The function's kernels as a graph, warmed up on a side stream as capture demands."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def machine() -> dict[str, str]:
    """What a figure means nothing without."""
    return {
        "cpu": f"{_cpu_model()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def cpu_details() -> dict[str, str]:
    """Which CPU it is beyond its name, and its vector instructions, as Linux tells."""
    numbers = [_cpuinfo(key) for key in ("cpu family", "model", "stepping")]
    prefixes = ("avx", "fma", "f16c", "amx", "asimd", "sve")
    flags = [flag for flag in _cpuinfo("flags").split() if flag.startswith(prefixes)]
    return {"family, model, stepping": ", ".join(numbers), "flags": " ".join(flags)}


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _commit() -> str:
    """The commit that is measured; "-dirty" if files other than results differ from it."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        differs = git(
            "status", "--porcelain", "--untracked-files=no", ":/", ":(top,exclude)bench/results"
        )
        return git("describe", "--always") + ("-dirty" if differs else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class Table:
    """Prints rows as they come, and keeps them for the JSON file."""

    def __init__(self, columns: dict[str, int], **settings: object) -> None:
        """`columns` maps names to widths; the first column is left-aligned."""
        self.columns = columns
        self.header = {**machine(), **{name: str(value) for name, value in settings.items()}}
        self.rows: list[dict[str, Any]] = []
        print(", ".join(f"{name}: {value}" for name, value in self.header.items()))
        self._print(dict(zip(columns, columns, strict=True)))

    def add(self, cells: dict[str, str], **raw: Any) -> None:
        """Prints `cells`; `raw` (numbers, Timings) goes to the file beside them."""
        if twice := cells.keys() & raw.keys():
            raise ValueError(f"raw must have names of its own, got {', '.join(sorted(twice))}")
        self._print(cells)
        values = {k: asdict(v) if isinstance(v, Timing) else v for k, v in raw.items()}
        self.rows.append({**cells, **values})

    def merge(
        self,
        path: Path,
        key: tuple[str, ...],
        shown: Callable[[dict[str, Any]], bool],
        **details: str,
    ) -> None:
        """Writes the rows, each with its commit, as JSON, and those that are `shown` as Markdown.

        Rows that are there already stay unless one of these has the same `key`, so that a table
        can be measured in parts.
        """
        header = {**self.header, **details}
        rows = {}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            for name in ("cpu", "torch"):
                if before["machine"][name] != header[name]:
                    raise ValueError(
                        f"{path} must be of {name} {header[name]}, got {before['machine'][name]}"
                    )
            rows = {tuple(row[k] for k in key): row for row in before["rows"]}
        commit = header.pop("commit")
        rows |= {tuple(row[k] for k in key): {**row, "commit": commit} for row in self.rows}
        columns = [*self.columns, "commit"]
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": header, "rows": list(rows.values())}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        lines = [f"{name}: {value}  " for name, value in header.items()]
        lines += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in filter(shown, rows.values()):
            lines.append(f"| {' | '.join(row[name] for name in columns)} |")
        path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _print(self, cells: dict[str, str]) -> None:
        first, *others = self.columns.items()
        line = f"{cells[first[0]]:<{first[1]}}"
        line += "".join(f"  {cells[name]:>{width}}" for name, width in others)
        print(line, flush=True)
