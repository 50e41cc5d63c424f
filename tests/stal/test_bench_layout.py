"""bench/bench_layout.py: a row a set of prompts, and the quantiles of its times."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "bench_layout.py"
BLOCKS = """\
Objects: bed, couch
Relation: bed left of couch
Sentence: The bed is left of the couch.

Objects: dog, cat
Relation: dog above cat
Sentence: A dog is above a cat.

Objects: cup, plate
Relation: cup right of plate
Sentence: A cup is to the right of a plate.
"""


def test_each_set_has_its_rows(tmp_path):
    (tmp_path / "g.txt").write_text(BLOCKS)
    options = ("--gpt", "g.txt", "--rounds", "1", "--batch", "2", "--unprojected")
    command = [sys.executable, str(SCRIPT), *options, "--output", "layout.json"]
    subprocess.run(command, check=True, cwd=tmp_path)
    rows = json.loads((tmp_path / "layout.json").read_text())["rows"]
    assert [row["prompts"] for row in rows] == ["g.txt", "g.txt, not projected"]
    for row in rows:
        times = row["milliseconds"]
        assert len(times) == int(row["number"]) == 3
        assert times == sorted(times)
        assert (row["median, ms"], row["worst"]) == (f"{times[1]:.3g}", f"{times[2]:.3g}")
    assert rows[0]["rates"] != rows[1]["rates"]
