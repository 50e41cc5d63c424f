"""What docs/diffusers.md shows runs, and what it says is so."""

import ast
import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import stal
import stal_kernels
from stal.evaluation.detectors import shapes
from stal.evaluation.metrics import judge
from stal.integrations.diffusers import disable, enable, prepare
from stal.integrations.diffusers.__main__ import main, table, with_table
from stal.integrations.diffusers.models import MODELS
from stal.model.model import bundled_model
from stal.prompts import parse
from tests.stal.integrations import unets

pytestmark = pytest.mark.xdist_group("page")  # its blocks run once for all

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "diffusers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
# Attention to all pixels of XL's own size takes long on a CPU: the same aspect, smaller.
SIZES = {"1344": "168", "768": "96"}
# The class of the example that adds a row.
EXAMPLE = "UNet3DConditionModel"


def is_right(picture, prompt, layout):
    said = parse(prompt)
    (found,) = shapes([picture], [said.objects])
    return judge(found, said.objects, said.statements, [o.box for o in layout.objects]).correct


@pytest.fixture(scope="module")
def scope(tmp_path_factory):
    """What the page's blocks leave behind, run one after another beside the folders they name."""
    folder = tmp_path_factory.mktemp("page")
    unets.stable_diffusion_xl().save_pretrained(folder / "my-sdxl")
    unets.stable_diffusion_xl_refiner().save_pretrained(folder / "my-sdxl-refiner")
    unets.animate_diff().save_pretrained(folder / "my-animatediff")
    found: dict = {"pictures": []}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        patch.chdir(folder)
        patch.setitem(MODELS, EXAMPLE, None)  # taken out again at the end
        for number, block in enumerate(BLOCKS):
            before = found.get("image")
            small = re.sub("|".join(SIZES), lambda size: SIZES[size[0]], block)
            exec(compile(small, f"block {number} of diffusers.md", "exec"), found)
            if found.get("image") is not before:
                found["pictures"].append(found["image"])
    return found | {"folder": folder, "warnings": [str(each.message) for each in seen]}


def test_every_block_runs_and_leaves_no_trace(scope):
    assert len(BLOCKS) >= 13
    assert len(scope["pictures"]) >= 8
    processors = {type(p).__name__ for p in scope["pipe"].unet.attn_processors.values()}
    assert processors == {"AttnProcessor2_0"}
    assert EXAMPLE not in MODELS


def test_no_block_is_warned_of(scope):
    ours = re.compile("the layout|no object|the pipeline|.* is a soft mask")
    assert [said for said in scope["warnings"] if ours.match(said)] == []


def test_blocks_that_do_not_run_are_python_at_least():
    (block,) = re.findall(r"```python no-run\n(.*?)```", PAGE, re.DOTALL)
    ast.parse(block)


def test_a_picture_that_is_not_square_has_the_aspect_that_is_said(scope):
    assert [each.size for each in scope["pictures"]].count((168, 96)) == 1


def test_a_video_has_its_frames(scope):
    first, *_, last = (np.asarray(frame).astype(int) for frame in scope["frames"])
    assert len(scope["frames"]) == 16
    assert np.abs(first - last).max() > 3


def test_regions_of_the_page_change_a_picture(scope):
    pipe, prompt = scope["pipe"], scope["prompt"]
    assert all(np.asarray(picture).std() > 1 for picture in scope["pictures"])

    def draw():
        generator = torch.Generator().manual_seed(1)
        return np.asarray(pipe(prompt, num_inference_steps=10, generator=generator).images[0])

    plain = draw()
    enable(pipe, prepare(pipe, prompt, layout=scope["boxes"]))
    try:
        regional = draw()
    finally:
        disable(pipe)
    assert np.abs(plain.astype(int) - regional).max() > 3
    assert (draw() == plain).all()


def test_several_prompts_give_all_their_pictures(scope):
    assert len(scope["images"]) == 4


def test_the_picture_of_the_page_is_the_one_that_its_block_draws(scope):
    shown, drawn = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in (DOCS / "diffusers.png", scope["folder"] / "diffusers.png")
    )
    assert shown.shape == drawn.shape
    assert np.abs(shown - drawn).mean() < 2
    assert (DOCS / "diffusers.png").stat().st_size < 60_000


def counted():
    """The rows of the page's table of right pictures: prompt, then how many of seeds 0 to 9."""
    rows = re.findall(r"^\| (a [a-z ]+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    return [(prompt, tuple(map(int, numbers))) for prompt, *numbers in rows]


# Drawn whenever tests run; the others take half a minute each.
QUICK = counted()[0][0]


def test_the_page_counts_right_pictures():
    assert len(counted()) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "claimed"), counted(), ids=lambda value: str(value)[:20])
def test_right_pictures_are_as_many_as_the_page_says(prompt, claimed, pytestconfig):
    if prompt != QUICK and not pytestconfig.getoption("--every-variant"):
        pytest.skip("drawn with --every-variant")
    pipe = StableDiffusionPipeline.from_pretrained(bundled_model())
    pipe.set_progress_bar_config(disable=True)
    layout = prepare(pipe, prompt).layouts[0]
    found = []
    for own in (None, {}, {"reference": "an empty scene {}", "background": 0.6}):
        if own is not None:
            enable(pipe, prepare(pipe, prompt, **own))
        generators = [torch.Generator().manual_seed(seed) for seed in range(10)]
        call = {"num_inference_steps": 25, "guidance_scale": 3.0, "generator": generators}
        images = pipe(prompt, num_images_per_prompt=10, **call).images
        disable(pipe)
        found.append(sum(is_right(image, prompt, layout) for image in images))
    # Another processor rounds otherwise, which may tip a picture at the edge.
    assert np.abs(np.subtract(found, claimed)).max() <= 1


def test_plain_is_wrong_and_ours_right_in_the_picture(scope):
    pipe, prompt = scope["small"], scope["shapes"]
    regions = prepare(pipe, prompt, reference="an empty scene {}", background=0.6)

    def draw():
        generator = torch.Generator().manual_seed(8)
        call = {"num_inference_steps": 25, "guidance_scale": 3.0, "generator": generator}
        return pipe(prompt, **call).images[0]

    assert not is_right(draw(), prompt, regions.layouts[0])
    enable(pipe, regions)
    assert is_right(draw(), prompt, regions.layouts[0])
    disable(pipe)


def test_the_table_is_that_of_the_rows():
    assert with_table(PAGE) == PAGE, "python -m stal.integrations.diffusers docs/diffusers.md"
    assert table().count("\n") == len(MODELS) + 2
    for name in MODELS:
        assert f"| `{name}` |" in table()


def test_the_command_prints_the_table_and_writes_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["stal.integrations.diffusers"])
    main()
    assert capsys.readouterr().out == table()
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{table().splitlines()[0]}\n| old |\n\nafter\n")
    monkeypatch.setattr("sys.argv", ["stal.integrations.diffusers", str(page)])
    main()
    assert page.read_text() == f"before\n\n{table()}\nafter\n"
    page.write_text("no table")
    with pytest.raises(ValueError, match="page must have one table"):
        main()


@cache
def messages():
    """What errors and warnings of stal say, with … where they name something."""
    found = []
    folders = [Path(package.__file__).parent for package in (stal, stal_kernels)]
    for path in [path for folder in folders for path in folder.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted_rows():
    """What the tables of errors and of warnings quote, with the advice of each."""
    section = PAGE.partition("## When it says no")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE)


@pytest.mark.parametrize("message", [message for message, _ in quoted_rows()])
def test_a_quoted_message_is_one_that_the_source_has(message):
    wanted = message.removeprefix("… ").removesuffix("…").rstrip()
    assert any(wanted in each for each in messages())


def test_every_row_of_the_messages_says_what_to_do():
    rows = quoted_rows()
    assert len(rows) == len(dict(rows)) > 20
    assert all(advice.strip() for _, advice in rows)


def test_blocks_of_the_page_of_layouts_run(monkeypatch, tmp_path):
    text = (DOCS / "layout.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        exec(compile(block, f"block {number} of layout.md", "exec"), found)
    assert found["image"].size == found["result"].images[0].size
    assert found["walk"].at_moment(0.5).objects[0].box == pytest.approx((0.35, 0.4, 0.65, 0.9))


def test_links_lead_somewhere():
    slugs = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    text = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        assert (DOCS / path).exists() if path else anchor in slugs
    for name in set(re.findall(r"\]\[([a-z0-9]+)\]", text)):
        assert re.search(rf"^\[{name}\]: https://\S+$", PAGE, re.MULTILINE), name
