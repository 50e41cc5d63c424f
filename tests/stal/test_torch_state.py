"""What a caller changes in torch for work of his own changes no picture, and we change nothing."""

import ast
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stal
from stal.layout.predictor import LayoutPredictor
from stal.model import clip as clip_module
from stal.model.model import bundled_model
from stal.optimize import Options, online, trajectory
from stal.optimize import schedule as fit_schedule
from stal.pipeline import Pipeline
from stal.settings import Settings
from stal.shapes.detector import detect
from stal.shapes.scenes import draw_scenes, render
from stal.torch_state import training, undisturbed
from stal.weights.files import WeightSchedule

PROMPT = "a red circle to the left of a blue square"
STEPS = 2


@contextmanager
def changed(change: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(back)


def mkldnn(enabled: bool) -> None:
    torch.backends.mkldnn.enabled = enabled


def seeded(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the state that callers may rely on


# Surroundings under which the very same is computed.
SAME = {
    "float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: changed(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "float16": lambda: changed(torch.set_default_dtype, torch.float16, torch.float32),
    "on-meta": lambda: changed(torch.set_default_device, "meta", None),
    "on-cpu": lambda: changed(torch.set_default_device, "cpu", None),
    "in-meta": lambda: torch.device("meta"),
    "autocast-bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast-float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "inference-mode": torch.inference_mode,
    "no-grad": torch.no_grad,
    "grad": torch.enable_grad,
    "deterministic": lambda: changed(torch.use_deterministic_algorithms, True, False),
    "anomaly": torch.autograd.detect_anomaly,
    "seed": lambda: changed(seeded, 7, 8),
    "flush-denormal": lambda: changed(torch.set_flush_denormal, True, False),
}
# And those where sums are taken in another order, or products in another precision.
NEAR = {
    "mkldnn-off": lambda: changed(mkldnn, False, True),
    "two-threads": lambda: changed(torch.set_num_threads, 2, torch.get_num_threads()),
    "matmul-medium": lambda: changed(torch.set_float32_matmul_precision, "medium", "highest"),
}


def draw(pipe: Pipeline) -> torch.Tensor:
    return pipe(PROMPT, seed=3, steps=STEPS).latents


def levels(pipe: Pipeline, latents: torch.Tensor) -> np.ndarray:
    return np.stack([np.asarray(image) for image in pipe.model.decode(latents)]).astype(int)


OFTEN = ("float64", "on-meta", "autocast-bfloat16", "inference-mode")


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize(
    ("kind", "name"), [*(("pipe", each) for each in SAME), *(("xl_pipe", each) for each in OFTEN)]
)
def test_surroundings_change_no_picture(kind, name, request):
    pipe = request.getfixturevalue(kind)
    plain = draw(pipe)
    with SAME[name]():
        found = draw(pipe)
        images = levels(pipe, found)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    assert torch.equal(found, plain)
    assert (images == levels(pipe, plain)).all()


@pytest.mark.parametrize("name", NEAR)
def test_other_arithmetic_changes_a_picture_by_two_levels_at_most(name, pipe):
    plain = levels(pipe, draw(pipe))
    with NEAR[name]():
        found = levels(pipe, draw(pipe))
    assert abs(found - plain).max() <= 2


@pytest.mark.parametrize("name", ["float64", "on-meta", "inference-mode"])
@pytest.mark.parametrize("folder", ["sd_folder", "xl_folder"])
def test_a_model_loaded_in_odd_surroundings_is_the_same_model(name, folder, request):
    folder = request.getfixturevalue(folder)
    plain = draw(Pipeline.from_pretrained(folder))
    with SAME[name]():
        pipe = Pipeline.from_pretrained(folder)
    assert torch.equal(draw(pipe), plain)
    assert not any(p.is_inference() for p in pipe.model.unet.parameters())


def test_a_model_is_loaded_and_drawn_with_in_another_thread(sd_folder, pipe):
    found = []
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        work = threading.Thread(
            target=lambda: found.append(draw(Pipeline.from_pretrained(sd_folder)))
        )
        work.start()
        work.join()
    # The other thread may use another number of threads than this one was told to.
    assert abs(levels(pipe, found[0]) - levels(pipe, draw(pipe))).max() <= 2


def test_no_random_state_is_touched(sd_folder):
    def states() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), rest

    seeded(5)
    before = states()
    draw(Pipeline.from_pretrained(sd_folder))
    LayoutPredictor.load()
    clip_module.load(bundled_model() / "clip").texts([PROMPT])
    with training():
        torch.manual_seed(1)
    assert states() == before


@pytest.mark.parametrize("name", [*OFTEN, "no-grad"])
def test_optimisers_work_in_any_surroundings(name, pipe, clip):
    def searched() -> list[torch.Tensor]:
        drawing = pipe.prepare([PROMPT], Settings(steps=STEPS))
        found = trajectory(drawing, clip, Options(epochs=2))
        adapted = online(drawing, clip)
        start = WeightSchedule({2: (1.0, 0.5)})
        fitted, _ = fit_schedule([drawing], clip, Options(epochs=1), start=start)
        knots = torch.tensor(fitted.knots[2], dtype=torch.float64, device="cpu")
        return [found.latents, *found.weights, adapted.latents, *adapted.weights, knots]

    plain = searched()
    with SAME[name]():
        found = searched()
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["float64", "bfloat16", "on-meta", "autocast-bfloat16"])
def test_layouts_scenes_and_detections_depend_on_no_default(name):
    def found() -> tuple[Any, ...]:
        from stal.prompts import parse

        predictor = LayoutPredictor.load()
        layouts = predictor.predict([parse(PROMPT)], samples=2, seed=1)
        pictures = render(draw_scenes(2, seed=1), seed=1)
        scorer = clip_module.load(bundled_model() / "clip")
        features = torch.cat([scorer.images(pictures), scorer.texts([PROMPT])]).tolist()
        return layouts, pictures.tolist(), detect(pictures), features

    plain = found()
    with SAME[name]():
        assert found() == plain


def test_what_is_within_sees_torch_as_it_is_by_default():
    with torch.autocast("cpu"), torch.inference_mode(), torch.device("meta"):
        with undisturbed():
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
            assert torch.get_default_device().type == "cpu"
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
        assert torch.get_default_device().type == "meta"
    with torch.no_grad(), undisturbed():
        assert not torch.is_grad_enabled()


def test_training_gives_the_default_dtype_back_after_an_error():
    with changed(torch.set_default_dtype, torch.float64, torch.float32):
        with suppress(ValueError), training():
            assert torch.get_default_dtype() == torch.float32
            raise ValueError
        assert torch.get_default_dtype() == torch.float64


MAKERS = ("zeros", "ones", "arange", "linspace", "tensor", "randn", "rand", "full", "eye", "empty")
# What computes pictures: training makes its own surroundings.
PLACES = ("*.py", "model", "layout", "weights", "shapes", "evaluation")


def test_every_new_tensor_names_its_dtype():
    root = Path(stal.__file__).parent
    files = [
        f
        for place in PLACES
        for f in ([*root.glob(place)] if "*" in place else [*(root / place).rglob("*.py")])
    ]
    assert len(files) > 40
    unnamed = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) else None
            if not isinstance(called, ast.Attribute) or called.attr not in MAKERS:
                continue
            if isinstance(called.value, ast.Name) and called.value.id == "torch":
                names = {keyword.arg for keyword in node.keywords}
                if "dtype" not in names:
                    unnamed.append(f"{file.relative_to(root)}:{node.lineno}")
    assert not unnamed


def test_two_threads_that_train_leave_the_default_dtype():
    entered, done = threading.Event(), threading.Event()

    def other() -> None:
        with training():
            entered.set()
            done.wait(5)

    torch.set_default_dtype(torch.float64)
    try:
        work = threading.Thread(target=other)
        work.start()
        entered.wait(5)
        threading.Timer(0.05, done.set).start()
        with training():
            assert torch.get_default_dtype() == torch.float32
        work.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
