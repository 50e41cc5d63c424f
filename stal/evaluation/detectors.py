"""What is seen in a picture, behind one interface: detector(images, wanted) -> detections.

`shapes` is exact in the shapes world. `zero_shot` loads OWLv2, OWL-ViT or Grounding DINO from a
folder; it looks for the nouns of a prompt, and CLIP says which attributes each find has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stal.evaluation.metrics import Detection
from stal.prompts import Object, article

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from stal.model.clip import Clip

# One list of detections an image; wanted are the objects of its prompt.
Detector = Callable[[Sequence["Image"], Sequence[Sequence[Object]]], list[list[Detection]]]
# The colour of an image's background, in a word.
Background = Callable[["Image"], str]

KINDS = ("owlv2", "owlvit", "grounding-dino")
MIN_SCORE = 0.3
# Two finds of one noun that overlap this much (intersection over union) are one; two of different
# nouns are one thing that goes by both names.
_SAME_NOUN, _SAME_THING = 0.5, 0.9
# A find is given the likeliest of these colours, or of those that its prompt names beside them.
COLOURS = (
    *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
    "gray",
)
_MORE_COLOURS = (
    *("grey", "silver", "gold", "golden", "beige", "cyan", "turquoise", "teal", "violet"),
    *("magenta", "maroon", "tan", "navy"),
)


def pixels(image: Image) -> Tensor:
    """A picture as (3, height, width) float32 in [0, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).to(torch.float32) / 255


def shapes(images: Sequence[Image], wanted: Sequence[Sequence[Object]]) -> list[list[Detection]]:
    """The exact detector of the shapes world: everything that is there, wanted or not."""
    import torch

    from stal.shapes.detector import detect

    found = []
    for image in images:
        (objects,) = detect(torch.stack([pixels(image)]))
        found.append([Detection(o.shape, (o.colour,), o.box, o.score) for o in objects])
    return found


def shapes_background(image: Image) -> str:
    """The background colour of a picture of the shapes world."""
    from stal.shapes.detector import background_of

    return background_of(pixels(image))


def zero_shot(
    folder: str | Path, clip: Clip, *, min_score: float = MIN_SCORE, device: Any = "cpu"
) -> Detector:
    """A detector that is told by words what to look for.

    Of each prompt's nouns, finds above min_score are kept, overlapping ones once. Attributes are
    chosen by CLIP on the crop of a find: one colour, if the prompt names any; and each other
    attribute of the prompt that fits better than the bare noun.

    Args:
        folder: a `transformers` model of one of `KINDS` with its processor, in safetensors.
        clip: what tells attributes.
        min_score: see above.
        device: where the detector runs.

    Raises:
        ValueError: the folder holds no such detector, or min_score is not in [0, 1].
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score must lie in [0, 1], got {min_score}")
    kind, processor, model = _load(Path(folder), device)

    def detector(
        images: Sequence[Image], wanted: Sequence[Sequence[Object]]
    ) -> list[list[Detection]]:
        found = []
        for image, objects in zip(images, wanted, strict=True):
            nouns = list(dict.fromkeys(each.noun for each in objects))
            picture = image.convert("RGB")
            finds = _find(kind, processor, model, picture, nouns, min_score) if nouns else []
            found.append(_with_attributes(finds, picture, objects, clip))
        return found

    return detector


def _load(folder: Path, device: Any) -> tuple[str, Any, Any]:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    from stal.checked_json import first_line, read_json
    from stal.torch_state import undisturbed

    if not folder.is_dir():
        raise ValueError(f"detector must be shapes or a folder with a model, got {folder}")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in KINDS:
        raise ValueError(f"{folder} must hold a detector ({', '.join(KINDS)}), got {kind}")
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        with undisturbed():
            model, info = AutoModelForZeroShotObjectDetection.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = first_line(error)
        raise ValueError(f"{folder} must hold a whole detector, got {reason}") from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"{folder} must hold every weight of the detector, got none of {missing}")
    return kind, processor, model.to(device).eval().requires_grad_(False)


def _find(
    kind: str, processor: Any, model: Any, image: Image, nouns: Sequence[str], min_score: float
) -> list[Detection]:
    import torch

    from stal.finite import NotFinite
    from stal.torch_state import undisturbed

    queries = [noun.lower().replace(".", "") for noun in nouns]
    if kind != "grounding-dino":
        queries = [f"a photo of {article(noun)} {noun}" for noun in queries]
    inputs = processor(images=[image], text=[queries], return_tensors="pt", truncation=True)
    with undisturbed(), torch.inference_mode():
        outputs = model(**inputs.to(model.device))
    for values in (outputs.logits, outputs.pred_boxes):
        # Scores of words that a query does not have are minus infinity.
        if bool(values.isnan().any()):
            raise NotFinite(f"what {kind} gives must be numbers, got NaN: its weights are at fault")
    scores = outputs.logits[0].float().sigmoid()  # (finds, nouns), or (finds, tokens)
    if kind == "grounding-dino":
        scores = _scores_of_phrases(scores, inputs["input_ids"][0], processor.tokenizer, len(nouns))
    centre, side = outputs.pred_boxes[0].float().split(2, dim=-1)
    corners = torch.cat([centre - side / 2, centre + side / 2], dim=-1)
    if kind == "owlv2":
        # It sees the picture in the top left corner of a square.
        longest = max(image.size)
        corners = corners * corners.new_tensor([longest / image.width, longest / image.height] * 2)
    best, label = scores.max(-1)
    finds = [
        Detection(nouns[index], (), (x0, y0, x1, y1), score)
        for score, index, (x0, y0, x1, y1) in zip(
            best.tolist(), label.tolist(), corners.clamp(0, 1).tolist(), strict=True
        )
        if score > min_score and x0 < x1 and y0 < y1
    ]
    kept: list[Detection] = []
    for find in sorted(finds, key=lambda each: -each.score):
        if all(_overlap(find.box, k.box) <= _limit(find, k) for k in kept):
            kept.append(find)
    return kept


def _scores_of_phrases(scores: Tensor, ids: Tensor, tokenizer: Any, phrases: int) -> Tensor:
    """The best token of each phrase of "one. two. three.": (finds, tokens) -> (finds, phrases)."""
    import torch

    ends = (ids == tokenizer.convert_tokens_to_ids(".")).nonzero().flatten().tolist()[:phrases]
    starts = [1, *(end + 1 for end in ends)]
    columns = [
        scores[:, start:end].amax(-1)
        for start, end in zip(starts, ends, strict=False)
        if end > start
    ]
    # What was cut off for length is not found.
    columns += [scores.new_zeros(len(scores))] * (phrases - len(columns))
    return torch.stack(columns, dim=-1)


def _limit(a: Detection, b: Detection) -> float:
    return _SAME_NOUN if a.noun == b.noun else _SAME_THING


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return shared / (sum(areas) - shared)


def _with_attributes(
    finds: Sequence[Detection], image: Image, objects: Sequence[Object], clip: Clip
) -> list[Detection]:
    import torch

    from stal.model.clip import crops

    words = list(dict.fromkeys(word for each in objects for word in each.attributes))
    if not finds or not words:
        return list(finds)
    named = [word for word in words if word in COLOURS or word in _MORE_COLOURS]
    colours = [*named, *(c for c in COLOURS if c not in named)] if named else []
    if "grey" in colours:
        colours.remove("gray")
    others = [word for word in words if word not in named]
    with torch.inference_mode():
        parts = crops(pixels(image), [f.box for f in finds], size=clip.preprocessing.size)
        features = clip.images(parts)  # (finds, dim)
        found = []
        for find, feature in zip(finds, features, strict=True):
            texts = [f"a photo of {_phrase(word, find.noun)}" for word in (*colours, *others, "")]
            scores = (clip.texts(texts) @ feature).tolist()
            seen = [
                word
                for word, s in zip(others, scores[len(colours) :], strict=False)
                if s > scores[-1]
            ]
            if colours:
                seen.append(colours[max(range(len(colours)), key=scores.__getitem__)])
            found.append(Detection(find.noun, tuple(seen), find.box, find.score))
    return found


def _phrase(word: str, noun: str) -> str:
    name = f"{word} {noun}".strip()
    return f"{article(name)} {name}"
