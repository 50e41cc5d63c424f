"""Hints for options that do not exist: other programs' names, and the nearest of ours."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from stal.diffusers_names import DIFFUSERS_ADVICE, DIFFUSERS_NAMES

# Options of other programs, and what they are called here; beside them, the arguments of diffusers.
OTHER_NAMES = {
    **{
        f"--{theirs}".replace("_", "-"): f"--{ours}".replace("_", "-")
        for theirs, ours in DIFFUSERS_NAMES.items()
    },
    "--inference-steps": "--steps",
    "--num-steps": "--steps",
    "--ddim-steps": "--steps",
    "--sampling-steps": "--steps",
    "--n-samples": "--num-images",
    "--batch-size": "--num-images",
    "--precision": "--dtype",
    "--cfg": "--guidance-scale",
    "--cfg-scale": "--guidance-scale",
    "--guidance": "--guidance-scale",
    "--scale": "--guidance-scale",
    "--negative": "--negative-prompt",
    "--neg-prompt": "--negative-prompt",
    "--sampler-name": "--sampler",
    "--sampling-method": "--sampler",
    "--ddim-eta": "--eta",
    "--manual-seed": "--seed",
    "--model-id": "--model",
    "--model-path": "--model",
    "--ckpt": "--model",
    "--checkpoint": "--model",
    "--outdir": "--output",
    "--output-dir": "--output",
    "--out": "--output",
    "--save": "--output",
    "--learning-rate": "--lr",
    "--num-train-epochs": "--epochs",
    "--max-train-steps": "--steps",
    "--train-batch-size": "--batch",
    "--aspect-ratio": "--aspect",
    "--layout-file": "--layout",
    "--bboxes": "--layout",
    "--boxes": "--layout",
    "--gpu": "--device",
    "--cuda": "--device",
    "--half": "--dtype",
    "--fp16": "--dtype",
    "--bf16": "--dtype",
    "--verbose": "--debug",
    "--traceback": "--debug",
    "-n": "--num-images",
    "-b": "--batch",
    "-o": "--output",
    "-s": "--seed",
    "-m": "--model",
    "-d": "--device",
    "-q": "--quiet",
    "-h": "--help",
    "-H": "--height",
    "-W": "--width",
    "-v": "--version",
    "-V": "--version",
}
# Options of the command as a whole.
_OF_ALL = ("--debug", "--version", "--help")


def add_hint(error: Any) -> None:
    """Makes a usage error say what was probably meant, where that can be told.

    error: of click, which typer carries in itself or not, depending on its version.
    """
    command = getattr(getattr(error, "ctx", None), "command", None)
    given = getattr(error, "option_name", None)
    if given is not None and hasattr(error, "possibilities"):
        params = getattr(command, "params", ())
        known = [name for each in params for name in (*each.opts, *each.secondary_opts)]
        error.possibilities = _meant(given, list(dict.fromkeys([*known, *_OF_ALL])))
        advice = DIFFUSERS_ADVICE.get(given.lstrip("-").replace("-", "_"))
        if advice is not None:
            error.message, error.possibilities = f"{error.message} It is diffusers': {advice}.", []
    message = getattr(error, "message", None)
    if message and "valid int" in message:
        error.message = f"{message.rstrip('.')}: write it in digits alone, like 1000"


def _meant(given: str, known: Sequence[str]) -> list[str]:
    """The options that are meant by one that does not exist: at most three."""
    named = given.replace("_", "-") if given.startswith("--") else given
    other = OTHER_NAMES.get(named, OTHER_NAMES.get(named.lower()))
    if named in known or other in known:
        return [named if named in known else str(other)]
    return get_close_matches(named.lower(), known, n=3, cutoff=0.6)
