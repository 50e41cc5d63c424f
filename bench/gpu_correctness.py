"""Steps of gpu_check.py about results: the case table, and bits that do not change."""

from collections import Counter
from concurrent.futures import Future, as_completed
from concurrent.futures import TimeoutError as OutOfTime
from functools import partial

import torch
from gpu_work import DTYPES, Work, half, pool, workers
from rivals import first_line

from stal_kernels import why_not
from stal_kernels.testing import CASES, Case, assert_within_twice_plain, example, results

# A dtype and what torch.set_float32_matmul_precision allows its products to be.
NUMBERS = {name: (dtype, "highest") for name, dtype in DTYPES.items()}


NUMBERS["tf32"] = (torch.float32, "high")


def correctness(work: Work) -> None:
    """The case table in every dtype, over several processes: compiling takes most of the time."""
    scores = [c.seqlen_q * c.seqlen_k * c.prompts * c.heads for c in CASES]
    small = [i for i, count in enumerate(scores) if count <= 1_000]
    indices = small if work.dry_run else list(range(len(CASES)))
    numbers = ("float32",) if work.dry_run else tuple(NUMBERS)
    (backend,) = work.backends
    taken = {name: [i for i in indices if not against(work, i, name)] for name in numbers}
    tasks = [(name, index) for name in numbers for index in taken[name]]
    failures: dict[str, list[str]] = {name: [] for name in numbers}
    done: Counter[str] = Counter()
    work.doing(f"{len(tasks)} cases")

    def note(name: str, failure: str) -> None:
        done[name] += 1
        failures[name] += [failure] if failure else []

    if work.dry_run:
        for name, index in tasks:
            if work.left() > 0:
                work.doing(f"{CASES[index]!r}, {name}")
                note(name, check_case(backend, name, work.device, index))
    else:
        processes = pool(workers())
        jobs = {processes.submit(check_case, backend, n, work.device, i): n for n, i in tasks}
        try:
            for job in as_completed(jobs, timeout=max(0.0, work.left())):
                note(jobs[job], _failure(job))
        except OutOfTime:
            processes.shutdown(wait=False, cancel_futures=True)
    for name in numbers:
        count, others = len(taken[name]), len(indices) - len(taken[name])
        result, detail = "ok", f"{count} cases, forward and all gradients"
        detail += f"; {others} that {backend} does not take" if others else ""
        if count == 0:
            result, detail = "not run", "; ".join(against(work, indices[0], name))
        elif failures[name]:
            result = "FAILED"
            detail = f"{len(failures[name])} of {done[name]} cases: {'; '.join(failures[name])}"
        elif done[name] < count:
            result = "FAILED"
            detail = f"time for {done[name]} of {count} cases, which are right"
        row = {"check": f"correctness {name}", "result": result, "detail": detail}
        work.row("checks", backend=backend, **row)


def against(work: Work, index: int, numbers: str) -> list[str]:
    """Reasons of the backend against a case of the table."""
    case, (dtype, _) = CASES[index], NUMBERS[numbers]
    q = torch.empty(case.head_dim, dtype=dtype, device=work.device)
    return why_not(work.backends[0], q, q.expand(case.seqlen_k, -1))


def _failure(job: Future[str]) -> str:
    error = job.exception()
    return job.result() if error is None else f"{type(error).__name__} {first_line(error)}"


def check_case(backend: str, numbers: str, device: str, index: int) -> str:
    """What is wrong with a case of the table; "" if nothing is."""
    dtype, precision = NUMBERS[numbers]
    torch.set_float32_matmul_precision(precision)
    plain = "plain tf32" if numbers == "tf32" else "plain"
    draws = 3 if device == "cuda" else 1
    try:
        case = CASES[index]
        assert_within_twice_plain(case, backend, dtype, draws=draws, device=device, plain=plain)
    except Exception as error:  # Each failing case is reported by name.
        return f"{CASES[index]!r}: {type(error).__name__} {first_line(error)}"
    return ""


def determinism(work: Work) -> None:
    for backend in work.backends:
        work.check("determinism", backend, partial(_determinism, work, backend))


def _determinism(work: Work, backend: str) -> str:
    repeats = 1 if work.dry_run else 100
    ragged = Case(batch=4, heads=2, seqlen_q=65, prompts=3, ragged=True)
    blobs = Case(batch=2, heads=2, seqlen_q=130, prompts=4, region="blobs")
    for case in (ragged, blobs):
        if work.dry_run:
            case = Case(**{**vars(case), "heads": 1, "seqlen_q": 20, "seqlen_k": 9, "head_dim": 8})
        e = example(case, half(work), work.device)
        first = results(e, backend)
        for _ in range(repeats):
            again = results(e, backend)
            different = [name for name in first if not torch.equal(first[name], again[name])]
            assert not different, f"{case!r}: {', '.join(different)} changed from call to call"
    return f"{repeats} repeats bit-identical, gradients too"
