"""What the engine believes that requests take is what they take, or not much more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="measures its peak by /proc"
)

# (side in pixels, requests that run at once)
CASES = [(64, 16), (256, 1), (256, 4)]
# What no request brings: kernels of convolutions, once a size, and what three threads' heaps keep.
BESIDES = 48e6

SCRIPT = """
import ctypes, json, sys
import stal
from stal.batch import Engine, Request
from stal.batch.denoiser import Denoiser
from stal.settings import Settings

def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

def draw(side, count, memory=None):
    settings = Settings(steps=2, height=side, width=side)
    prompt = "a red circle to the left of a blue square"
    requests = [Request(prompt, settings, seed=i) for i in range(count)]
    with Engine(pipe, max_rows=count, memory=memory) as engine:
        kept, passing, decoding = engine._stages.bytes_of(engine._checked(requests[0]))
        if memory is not None:
            list(engine.map(requests))
    # A tenth of it is for decoding, whatever that takes.
    return max(int(count * (kept + passing) / 0.9) + 1, count * (kept + passing) + decoding)

pipe = stal.Pipeline.from_pretrained()
shared, step = [], Denoiser.step
Denoiser.step = lambda self: (shared.append(len(self.running)), step(self))[1]
draw(64, 1, 10**9)  # whatever is made once in a process
for side, count in json.loads(sys.argv[1]):
    memory = draw(side, count)
    shared.clear()
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from now on
    before = kilobytes("VmRSS")
    draw(side, count, memory)
    print(json.dumps([side, count, max(shared), memory, 1024 * (kilobytes("VmHWM") - before)]))
"""


def test_requests_take_at_most_what_is_estimated():
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(CASES)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert [case[:3] for case in found] == [[side, count, count] for side, count in CASES]
    for _, _, _, estimate, taken in found:
        assert 0 < taken <= estimate + BESIDES
    # The larger ones are not far below.
    assert max(estimate / taken for side, _, _, estimate, taken in found if side == 256) < 2
