"""The page, used in a browser as people use it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import stal
from stal import picture
from stal.layout.coverage import Painted

from .browsing import Visitor, find_browser, pixels, seen, serving

pytestmark = [
    pytest.mark.needs("playwright", "fastapi", "uvicorn", "prometheus_client"),
    pytest.mark.xdist_group("browser"),  # one server and one browser for all
]

PAGE = Path(stal.__file__).parent / "app" / "page"
CIRCLE, SQUARE = "a red circle", "a blue square"
# As long as a server lets anybody wait for, so that there is time to cancel.
MANY_STEPS = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("app")) as where:
        yield where


@pytest.fixture(scope="module")
def browser(request):
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        missing = pytest.fail if request.config.getoption("--all-packages") else pytest.skip
        missing("needs Chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path)
        yield launched
        launched.close()


@pytest.fixture
def newcomer(browser, server):
    """newcomer(**options of a context): somebody new at the page, who meets no trouble."""
    visitors, contexts = [], []

    def come(**options):
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        )
        visitors.append(Visitor(contexts[-1].new_page(), server))
        return visitors[-1]

    yield come
    for context in contexts:
        context.close()
    assert [visitor.troubles for visitor in visitors] == [[] for _ in visitors]


@pytest.fixture
def visitor(newcomer):
    visitor = newcomer()
    visitor.enter()
    return visitor


def centre(shapes, colour, shape):
    """In hundredths of the picture."""
    (x, y) = next(each.centre for each in shapes if (each.colour, each.shape) == (colour, shape))
    return 100 * x, 100 * y


def middle(place):
    left, top, wide, high = place
    return left + wide / 2, top + high / 2


def test_the_object_of_a_dragged_box_moves_in_the_picture(visitor):
    visitor.only("Spatial-temporal")
    before = centre(visitor.draw(), "red", "circle")
    start = middle(visitor.place_of(CIRCLE))
    up = start[1] > 50
    visitor.paths.clear()
    visitor.drag(start, (start[0], 25 if up else 75), steps=20)
    assert visitor.paths == []
    there = middle(visitor.place_of(CIRCLE))
    assert abs(there[1] - start[1]) > 15
    after = centre(visitor.draw(), "red", "circle")
    assert np.abs(np.subtract(after, there)).max() < 10
    assert np.sign(after[1] - before[1]) == np.sign(there[1] - start[1])
    assert abs(after[1] - before[1]) > 10


def test_what_was_dragged_comes_back_and_goes_again(visitor):
    start = visitor.place_of(CIRCLE)
    visitor.drag(middle(start), (60, 60))
    moved = visitor.place_of(CIRCLE)
    assert moved != start
    visitor.page.keyboard.press("Control+z")
    assert visitor.place_of(CIRCLE) == start
    visitor.page.keyboard.press("Control+y")
    assert visitor.place_of(CIRCLE) == moved


def test_keys_move_resize_order_and_delete(visitor):
    left, top, wide, high = visitor.place_of(CIRCLE)
    visitor.mark(CIRCLE).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowLeft"):
        visitor.page.keyboard.press(key)
    assert visitor.place_of(CIRCLE) == (left + 2, top - 1, wide - 1, high)
    names = visitor.page.locator("#objects .name")
    visitor.page.keyboard.press("[")
    assert [each.input_value() for each in names.all()] == [SQUARE, CIRCLE]
    visitor.page.keyboard.press("Delete")
    assert [each.input_value() for each in names.all()] == [SQUARE]
    assert "still says “a red circle”" in visitor.page.inner_text("#disagreement")


def test_a_prompt_is_placed_while_it_is_typed_and_what_was_placed_by_hand_stays(visitor):
    visitor.drag(middle(visitor.place_of(CIRCLE)), (60, 20))
    by_hand = visitor.place_of(CIRCLE)
    visitor.say("a red circle, a blue square and a green star", 3)
    assert visitor.place_of(CIRCLE) == by_hand
    visitor.say("a green star", 1)
    assert visitor.mark(CIRCLE).count() == 0


def test_a_new_object_is_drawn_named_and_written_into_the_prompt(visitor):
    visitor.say("a red circle on a black background", 1)
    visitor.page.get_by_text("Ellipse").first.click()
    visitor.drag((60, 55), (95, 95))
    visitor.page.keyboard.type("a green star")
    visitor.page.keyboard.press("Enter")
    prompt = visitor.page.input_value("#prompt")
    assert prompt == "a red circle and a green star on a black background"
    assert visitor.place_of("a green star") == (60, 55, 35, 40)
    visitor.page.locator(".object.selected .name").fill("a yellow star")
    visitor.page.keyboard.press("Enter")
    assert visitor.page.input_value("#prompt") == prompt.replace("green", "yellow")


def test_polygons_and_painted_masks_are_drawn_as_they_look(visitor):
    visitor.say("nothing", 0)
    visitor.page.get_by_text("Polygon").first.click()
    for corner in ((10, 10), (50, 10), (30, 50), (10, 10)):
        visitor.page.mouse.click(*visitor.at(*corner))
    visitor.page.keyboard.type("a red triangle\n")
    visitor.page.get_by_text("Brush").first.click()
    visitor.page.keyboard.press("Escape")
    visitor.page.get_by_text("Brush").first.click()
    visitor.drag((60, 80), (90, 80))
    visitor.page.keyboard.type("a blue square\n")
    visitor.only("Spatial-temporal")
    visitor.page.fill("#steps", "2")
    visitor.draw()
    square, triangle = visitor.asked[-1]["layout"]["objects"]
    assert np.allclose(triangle["shape"], [[0.1, 0.1], [0.5, 0.1], [0.3, 0.5]], atol=0.005)
    cells = Painted(**square["shape"]).cells
    # A stroke of 30 hundredths with round ends of the brush's radius, 5 hundredths.
    assert cells.mean() == pytest.approx(0.30 * 0.10 + np.pi * 0.05**2, rel=0.06)
    assert cells[round(0.8 * cells.shape[0]), round(0.75 * cells.shape[1])]


def test_front_objects_cover_those_behind_if_asked_to(visitor):
    visitor.say(f"{CIRCLE} and {SQUARE}", 2)
    visitor.drag(middle(visitor.place_of(CIRCLE)), middle(visitor.place_of(SQUARE)))
    visitor.only("Spatial-temporal")
    visitor.page.fill("#steps", "1")
    visitor.draw()
    assert not any("shape" in each for each in visitor.asked[-1]["layout"]["objects"])
    visitor.page.get_by_label("Front objects cover").check()
    visitor.drag((1, 1), (1, 1))
    visitor.mark(CIRCLE).focus()
    for _ in range(12):
        visitor.page.keyboard.press("Shift+ArrowLeft")
    visitor.draw()
    front, back = visitor.asked[-1]["layout"]["objects"]
    assert front["phrase"] == CIRCLE
    assert "shape" not in front
    cells = Painted(**back["shape"]).cells
    x0, y0, x1, y1 = (round(edge * 128) for edge in front["box"])
    assert not cells[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].any()
    assert cells.any()


def test_strength_steps_and_the_schedule_are_what_is_drawn_with(visitor):
    visitor.only("Spatial-temporal")
    visitor.page.fill("#steps", "5")
    visitor.page.locator(".swatch").first.click()
    strength, start, stop = visitor.page.locator(".object.selected input[type=range]").all()
    strength.fill("2")
    start.fill("0.25")
    stop.fill("0.75")
    first = visitor.page.locator(".knot").first
    first.focus()
    visitor.page.keyboard.press("ArrowDown")
    curve = visitor.page.locator("#curve").bounding_box()
    visitor.page.mouse.click(curve["x"] + curve["width"] / 2, curve["y"] + curve["height"] * 0.46)
    assert visitor.page.locator(".knot").count() == 3
    drawn = visitor.picture()
    asked = visitor.asked[-1]["weights"]
    assert asked["regions"][0] == {"strength": 2, "start": 0.25, "stop": 0.75}
    (t0, w0), (t1, w1), (t2, w2) = asked["curve"]
    assert (t0, w0, t2, w2) == (0, 0.95, 1, 0)
    assert t1 == pytest.approx(0.5, abs=0.03)
    assert w1 == pytest.approx(0.95 * (1 - t1), abs=0.03)
    record = picture.record_in(drawn, name="the picture")
    weights = np.array(record["weights"])
    peak = 1.9 - 1.5 / 2
    assert weights[0, 1] == pytest.approx(0.95 * peak)
    assert weights[:, 0] == pytest.approx([0, *(2 * weights[1:3, 1]), 0, 0], abs=1e-6)


def test_untouched_weights_are_the_methods_own(visitor):
    visitor.page.fill("#steps", "1")
    visitor.page.click("#draw")
    visitor.page.locator("#visit li").first.wait_for()
    assert [each["attention"] for each in visitor.asked] == ["plain", "spatial", "spatial-temporal"]
    assert [each["weights"] for each in visitor.asked] == [None] * 3
    assert len({each["seed"] for each in visitor.asked}) == 1
    assert visitor.page.locator(".panel img:visible").count() == 3


def test_previews_come_before_the_picture(visitor):
    visitor.only("Plain")
    visitor.page.click("#draw")
    image = visitor.page.locator(".panel").first.locator("img")
    visitor.page.wait_for_function(
        "() => document.querySelector('.panel img').src.startsWith('data:image/jpeg')"
    )
    assert visitor.page.locator(".panel progress").first.is_visible()
    visitor.page.locator("#visit li").first.wait_for()
    assert image.get_attribute("src").startswith("blob:")


def test_a_drawing_that_is_cancelled_stops(visitor):
    visitor.page.fill("#steps", str(MANY_STEPS))
    visitor.page.click("#draw")
    visitor.page.get_by_text(re.compile(f"Step \\d+ of {MANY_STEPS}")).first.wait_for()
    with visitor.page.expect_response(lambda answer: answer.request.method == "DELETE") as gone:
        visitor.page.get_by_role("button", name="Cancel").click()
    assert gone.value.status == 204
    assert visitor.page.get_by_text("Cancelled").count() == 3
    for _ in range(100):
        counted = visitor.get(f"{visitor.server.url}/metrics").decode()
        if re.search(r"^stal_rows 0\.0$", counted, re.MULTILINE):
            break
        visitor.page.wait_for_timeout(50)
    else:
        pytest.fail(counted)
    assert not any(path.endswith("picture.png") for path in visitor.paths)


def test_two_users_at_once_see_their_own_pictures(newcomer):
    visitors = {"green star": newcomer(), "purple ring": newcomer()}
    for thing, visitor in visitors.items():
        visitor.enter()
        visitor.say(f"a {thing}", 1)
        visitor.only("Spatial-temporal")
    for visitor in visitors.values():
        visitor.page.click("#draw")
    for thing, visitor in visitors.items():
        visitor.page.locator("#visit li").first.wait_for()
        (path,) = [path for path in visitor.paths if path.endswith("picture.png")]
        found = seen(visitor.get(visitor.server.url + path))
        assert thing in [f"{each.colour} {each.shape}" for each in found]


HOSTILE = "<img src=x onerror=alert(1)><script>window.hurt = 1</script> \"'><svg onload=alert(2)>"
# Of words that the model knows.
TAGGED = "a red circle <picture on='a'></picture>"


def test_a_hostile_prompt_is_a_text(visitor):
    visitor.page.fill("#prompt", TAGGED)
    visitor.only("Spatial-temporal")
    visitor.page.fill("#steps", "1")
    visitor.draw()
    visitor.page.locator("#words").get_by_text("<picture").wait_for()
    visitor.page.click("#show-code")
    visitor.page.locator("#lines").get_by_text("<picture on=").wait_for()
    visitor.page.click("#close-code")
    visitor.page.locator(".name").first.fill(HOSTILE)
    visitor.page.keyboard.press("Enter")
    assert HOSTILE in visitor.page.input_value("#prompt")
    visitor.page.click("#draw")
    visitor.page.locator("#notice").get_by_text("onerror").wait_for()
    layout = {"prompt": HOSTILE, "objects": [{"phrase": HOSTILE, "box": [0, 0, 0.5, 0.5]}]}
    visitor.open(f"{HOSTILE[:20]}.json", json.dumps(layout).encode())
    assert visitor.page.locator("#objects .name").input_value() == HOSTILE
    assert visitor.page.evaluate("window.hurt") is None
    parts = "main script, main picture, main [onerror], main [onload]"
    assert visitor.page.locator(parts).count() == 0
    visitor.troubles[:] = [each for each in visitor.troubles if "400" not in each]


def test_a_script_of_another_origin_or_in_the_page_is_refused(newcomer):
    visitor = newcomer()
    visitor.enter()
    visitor.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hurt = 1';"
        " document.body.append(s); }"
    )
    assert visitor.page.evaluate("window.hurt") is None
    assert any("Content Security Policy" in trouble for trouble in visitor.troubles)
    visitor.troubles.clear()


def test_a_picture_that_was_saved_opens_as_it_was(visitor, newcomer):
    visitor.say("a red circle and a blue square", 2)
    visitor.only("Spatial-temporal")
    for name, value in {"steps": "3", "seed": "41", "width": "80"}.items():
        visitor.page.fill(f"#{name}", value)
    visitor.page.locator(".swatch").first.click()
    visitor.page.locator(".object.selected input[type=range]").first.fill("1.5")
    visitor.page.locator(".knot").first.focus()
    visitor.page.keyboard.press("ArrowDown")
    visitor.draw()
    with visitor.page.expect_download() as download:
        visitor.page.click("#save-png")
    data = Path(download.value.path()).read_bytes()
    other = newcomer()
    other.enter()
    other.open("mine.png", data)
    for name in ("prompt", "steps", "seed", "width", "height", "guidance"):
        assert other.page.input_value(f"#{name}") == visitor.page.input_value(f"#{name}")
    other.page.locator(".panel.shown img:visible").wait_for()
    other.only("Spatial-temporal")
    other.draw()
    (again,) = other.asked
    assert again == {**visitor.asked[-1], "sampler": "ddim"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ours.json", '{"objects": [{"phrase": "a cat", "box": [0.25, 0.5, 0.5, 1]}]}'),
        (
            "ideogram.json",
            '{"high_level_description": "A cat.", "compositional_deconstruction": {"background":'
            ' "grass", "elements": [{"type": "obj", "bbox": [500, 250, 1000, 500],'
            ' "desc": "a cat"}]}}',
        ),
        ("flux.json", '{"boxes": [{"desc": "a cat", "bbox": [0.5, 0.25, 1, 0.5]}]}'),
        (
            "comfyui.json",
            '[[{"x": 16, "y": 32, "width": 16, "height": 32, "label": "a cat", "score": 0.9}]]',
        ),
        ("layoutgpt.txt", "cat {width: 16px; height: 32px; left: 16px; top: 32px; }"),
    ],
)
def test_layouts_of_other_programs_open(visitor, name, text):
    visitor.open(name, text.encode())
    assert visitor.place_of("a cat") == (25, 50, 25, 50)


def test_a_file_that_is_dropped_opens(visitor):
    visitor.page.evaluate(
        """text => {
          const files = new DataTransfer();
          files.items.add(new File([text], "dropped.json"));
          dispatchEvent(new DragEvent("drop", {dataTransfer: files, cancelable: true}));
        }""",
        '[{"phrase": "a cat", "box": [0.25, 0.5, 0.5, 1]}]',
    )
    visitor.page.get_by_text("dropped.json is open.").wait_for()
    assert visitor.place_of("a cat") == (25, 50, 25, 50)


def test_a_file_of_another_kind_is_refused_with_a_sentence(visitor):
    file = {"name": "x.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nrubbish"}
    visitor.page.set_input_files("#file", [file])
    visitor.page.locator("#notice").get_by_text("must").wait_for()
    assert visitor.page.locator(".mark").count() == 2
    visitor.troubles[:] = [each for each in visitor.troubles if "400" not in each]


def test_attention_of_a_word_is_where_its_object_is(visitor):
    visitor.only("Spatial-temporal")
    visitor.draw()
    chips = visitor.page.locator("#words .chip")
    chips.first.wait_for()
    mean = {}
    for word in ("circle", "square"):
        visitor.page.locator("#heat").evaluate("canvas => { canvas.width = 0; }")
        chips.get_by_text(word, exact=True).click()
        visitor.page.wait_for_function("() => document.querySelector('#heat').width > 0")
        assert visitor.page.locator("#heat").is_visible()
        alpha = visitor.page.evaluate(
            """() => {
              const heat = document.querySelector("#heat");
              const {data} = heat.getContext("2d").getImageData(0, 0, heat.width, heat.height);
              return [heat.width, [...data].filter((_, k) => k % 4 === 3)];
            }"""
        )
        side, values = alpha
        mean[word] = np.array(values, dtype=float).reshape(-1, side)
    left, right = (slice(None), slice(0, side // 2)), (slice(None), slice(side // 2, None))
    assert mean["circle"][left].mean() > mean["circle"][right].mean()
    assert mean["square"][left].mean() < mean["square"][right].mean()


def test_the_python_lines_draw_the_same_picture(visitor, tmp_path, monkeypatch):
    visitor.only("Spatial-temporal")
    visitor.page.fill("#steps", "3")
    drawn = visitor.picture()
    visitor.page.get_by_role("button", name="Python").click()
    visitor.page.locator("#lines").wait_for()  # visible once the server has answered
    lines = visitor.page.inner_text("#lines")
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    again = pixels((tmp_path / "picture.png").read_bytes())
    assert np.abs(again - pixels(drawn)).max() <= 2 / 255


def test_a_picture_of_this_visit_brings_back_what_made_it(visitor):
    visitor.only("Spatial-temporal")
    visitor.page.fill("#steps", "1")
    visitor.draw()
    visitor.say("a green star", 1)
    visitor.page.locator("#visit button").first.click()
    assert visitor.page.input_value("#prompt") == f"{CIRCLE} to the left of {SQUARE}"
    assert visitor.mark(CIRCLE).count() == 1


def test_without_the_key_the_page_says_so(newcomer):
    visitor = newcomer()
    visitor.page.goto(visitor.server.url)
    visitor.page.locator("#notice").get_by_text("key").wait_for()
    visitor.page.goto(f"{visitor.server.url}/?again#token={visitor.server.key}")
    visitor.page.wait_for_selector(".mark")
    assert "token" not in visitor.page.url
    visitor.troubles[:] = [each for each in visitor.troubles if "401" not in each]


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_is_wider_than_the_window(newcomer, width):
    visitor = newcomer(viewport={"width": width, "height": 844}, has_touch=width < 800)
    visitor.enter()
    visitor.page.locator(".swatch").first.click()
    wide = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert wide == width
    stage = visitor.page.locator("#stage").bounding_box()
    assert stage["width"] == pytest.approx(stage["height"], abs=1)


def test_a_wide_canvas_is_placed_and_drawn_wide(visitor):
    visitor.only("Spatial-temporal")
    visitor.page.select_option("#aspect", "16:9")
    visitor.page.fill("#steps", "1")
    visitor.draw()
    asked = visitor.asked[-1]
    assert asked["width"] / asked["height"] == pytest.approx(16 / 9, rel=0.15)
    assert asked["layout"]["aspect"] == pytest.approx(asked["width"] / asked["height"])
    stage = visitor.page.locator("#stage").bounding_box()
    assert stage["width"] / stage["height"] == pytest.approx(asked["layout"]["aspect"], rel=0.01)


def test_all_that_can_be_used_has_a_name_and_shows_the_focus(visitor):
    visitor.page.locator(".swatch").first.click()
    client = visitor.page.context.new_cdp_session(visitor.page)
    nodes = client.send("Accessibility.getFullAXTree")["nodes"]

    def says(node, name):
        return any(
            each["name"] == name and each["value"].get("value") for each in node["properties"]
        )

    usable = [
        node
        for node in nodes
        if "properties" in node
        and says(node, "focusable")
        and node["role"]["value"] != "RootWebArea"
    ]
    assert len(usable) > 30
    assert [node["role"] for node in usable if not node.get("name", {}).get("value")] == []
    hidden = []
    for _ in range(len(usable)):
        visitor.page.keyboard.press("Tab")
        hidden += visitor.page.evaluate(
            """() => {
              const node = document.activeElement;
              if (node === document.body) return [];
              const near = [node, node.closest("label"), ...node.children].filter(Boolean);
              const marked = near.some((each) => {
                const {outlineStyle, strokeWidth} = getComputedStyle(each);
                return outlineStyle !== "none" || parseFloat(strokeWidth) >= 4;
              });
              return marked ? [] : [node.outerHTML.slice(0, 80)];
            }"""
        )
    assert hidden == []


def test_masks_mean_the_same_in_the_page_and_in_python(visitor):
    generator = np.random.default_rng(0)
    cells = generator.random((5, 7)) < 0.4
    runs = list(Painted.from_cells(cells).runs)
    found = visitor.page.evaluate(
        """async ([height, width, runs]) => {
          const {cellsOf, runsOf, boxOfCells} = await import("/page/cells.js");
          const cells = cellsOf({height, width, runs});
          return [[...cells.covered], runsOf(cells), boxOfCells(cells)];
        }""",
        [*cells.shape, runs],
    )
    assert found[0] == cells.ravel().astype(int).tolist()
    assert Painted(*cells.shape, tuple(found[1])).cells.tolist() == cells.tolist()
    assert found[2] == pytest.approx(Painted.from_cells(cells).box)


def test_the_files_have_no_scripts_or_styles_of_their_own():
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\sstyle=|\son\w+=|<style|https?://", index)
    for module in PAGE.glob("*.js"):
        text = module.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
