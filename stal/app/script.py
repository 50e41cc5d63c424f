"""Lines of Python that draw a finished drawing again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# The arguments of `stal.Pipeline`'s call that a picture's record has.
_ARGUMENTS = (
    *("negative_prompt", "attention", "rule", "reference", "background", "weights", "sampler"),
    *("eta", "steps", "guidance_scale", "height", "width"),
)


def script(record: Mapping[str, Any], *, output: str = "picture.png") -> str:
    """A program that draws what a record (`Result.settings`) says, and writes the picture.

    Every text is written as Python writes it, so that none of them is a part of the program.
    """
    loaded = [repr(record["model"])] if record["model"] else []
    loaded.append(f"dtype=torch.{record['dtype']}")
    if "loras" in record:
        loaded.append(f"loras={[(each['source'], each['scale']) for each in record['loras']]!r}")
    arguments = {"layout": None, "seed": record["seeds"][0]}
    arguments |= {name: record[name] for name in _ARGUMENTS}
    lines = [f"    {name}={value!r}," for name, value in arguments.items() if name != "layout"]
    return "\n".join(
        [
            "import stal",
            "import torch",
            "from stal import picture",
            "",
            f"layout = {json.dumps(record['layout'])!r}",
            f"pipe = stal.Pipeline.from_pretrained({', '.join(loaded)})",
            "result = pipe(",
            f"    {record['prompt']!r},",
            "    layout=stal.Layout.from_json(layout),",
            *lines,
            ")",
            f"picture.save(result.images[0], {output!r}, result.settings)",
            "",
        ]
    )
