"""`stal evaluate-layout`: the parser and the layout predictor on labelled sets of prompts.

    stal evaluate-layout --gpt gpt_dev.txt --nsr1k nsr1k_spatial_train.json \\
        --counting nsr1k_counting_dev.json --captions vsr_dev.txt --captions t2i_spatial_train.txt

The first table says what the parser finds (`stal.evaluation.parsing`), the second compares ways of
placing (`stal.evaluation.placing`); `stal.evaluation.labelled` has the formats of the sets.
Intervals are exact (Clopper-Pearson), 95%.

With --folds DIR, where `stal train-layout --fold K --output DIR/K` wrote K = 0 .. 4, every picture
is placed by the predictor that was not trained on it (its id modulo 5 is K; prompts of no picture
are spread alike), and a third table has the likelihood of boxes that training did not see, against
one Gaussian fitted to the others, and how well sizes agree (`stal.evaluation.realism`).
--sense FILE has prompts with checks that any sane layout passes (`stal.evaluation.sense`).
--ablation DIR are such folders of `stal train-layout --no-relative`.

Heavy imports happen late.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from stal.extras import check_installed

_Paths = Annotated[list[Path] | None, typer.Option(exists=True, dir_okay=False)]


def evaluate_layout(
    gpt: _Paths = None,
    nsr1k: _Paths = None,
    counting: _Paths = None,
    captions: _Paths = None,
    sense: _Paths = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of a layout predictor; the bundled one if absent.")
    ] = None,
    folds: Annotated[
        Path | None, typer.Option(help="Folder of `train-layout --fold K --output DIR/K`, K 0..4.")
    ] = None,
    ablation: Annotated[
        Path | None, typer.Option(help="The same, trained with --no-relative.")
    ] = None,
    failures: Annotated[int, typer.Option(min=0, help="How many failures to list of a set.")] = 0,
    engine: Annotated[
        str, typer.Option(help="How prompts are read: grammar or spacy.")
    ] = "grammar",
) -> None:
    """Score the prompt parser and the layout predictor on labelled sets."""
    if not (gpt or nsr1k or counting or captions or sense):
        raise typer.BadParameter("name at least one set, e.g. --gpt FILE")
    check_installed("scipy", "the intervals")
    if engine == "spacy":
        check_installed("spacy", "the engine spacy")

    from stal.evaluation.labelled import read_captions, read_counting, read_gpt, read_spatial
    from stal.evaluation.parsing import score, score_counting, score_table, summed
    from stal.evaluation.placing import placement_table, placers
    from stal.evaluation.realism import realism_of, realism_table
    from stal.prompts import parse

    try:
        parse("", engine=engine)
    except (ImportError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    if sense:
        _show_sense(sense, model, failures)
        if not (gpt or nsr1k or counting or captions):
            return
    ways = placers(model, folds=folds, ablation=ablation)
    # (name, cases, whether to score as NSR-1K does)
    blocks = [(path.name, read_gpt(path), False) for path in gpt or []]
    spatial = [(path.name, read_spatial(path), True) for path in nsr1k or []]
    lines = [(path.name, read_captions(path), False) for path in captions or []]
    scores = {name: score(c, loosely=loose, engine=engine) for name, c, loose in blocks + spatial}
    for path in counting or []:
        scores[path.name] = score_counting(read_counting(path), engine=engine)
    scores |= {name: score(cases, engine=engine) for name, cases, _ in lines}
    print(score_table(scores))
    print(f"\n{placement_table(blocks + spatial + lines, ways, engine=engine)}")
    real = [*(nsr1k or []), *(counting or [])]
    named = {"no relative objective": ablation, "predictor": folds}
    held = {name: realism_of(real, each) for name, each in named.items() if each and real}
    if held:
        print(f"\n{realism_table(held)}")
    for name, kinds in scores.items():
        found = summed(kinds.values()).failures
        for kind, number in Counter(kind for kind, _, _ in found).most_common():
            print(f"\n{name}: {kind}: {number}")
            for _, what, prompt in [item for item in found if item[0] == kind][:failures]:
                print(f"    {what} | {prompt}")


def _show_sense(sense: list[Path], model: Path | None, failures: int) -> None:
    from stal.evaluation.sense import read_sensible, sense_table
    from stal.layout.predictor import LayoutPredictor
    from stal.prompts import parse

    predictor = LayoutPredictor.load(model)
    sets = [(path.name, read_sensible(path)) for path in sense]
    table, failed = sense_table(
        sets, lambda texts: [found[0] for found in predictor.predict([parse(t) for t in texts])]
    )
    print(f"{table}\n")
    for prompt, check in failed[:failures]:
        print(f"    {check} | {prompt}")
