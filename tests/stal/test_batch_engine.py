"""The engine on a tiny model: pictures are those that the pipeline draws alone, whoever shares the
batch, and what goes wrong with one request is that request's alone."""

import asyncio
import dataclasses
import gc
import itertools
import random
import threading
import time
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import stal.batch
from stal.batch import DeadlineExceeded, Engine, EngineClosed, Request
from stal.batch.denoiser import Denoiser, Running
from stal.batch.scheduler import Stage
from stal.batch.stages import ModelStages
from stal.batch.table import Table
from stal.finite import NotFinite
from stal.layout import Layout
from stal.pipeline import Pipeline
from stal.sampler import SAMPLERS
from stal.settings import Settings
from stal_kernels import plan

PROMPTS = [
    "an empty scene",
    "a green star",
    "a red circle to the left of a blue square",
    "a red circle, a green ring above a yellow cross",
    "a red circle, a blue square, a green star and a pink ring",
    "a red circle, a blue square, a green star, a pink ring and a yellow cross",
]
TWO = PROMPTS[2]
LONG = Settings(steps=1000)  # for what is stopped before it ends

# Prompts without an object are drawn plain, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:no object was found:UserWarning")


@pytest.fixture(scope="module")
def pipe64(sd_folder) -> Pipeline:
    return Pipeline.from_pretrained(sd_folder, dtype=torch.float64)


def mixture(count: int, seed: int, **fixed) -> list[Request]:
    """Requests of every kind, each kind at least once in twelve."""
    draw = random.Random(seed)
    ways = [
        {"attention": "plain"},
        {"attention": "spatial", "reference": "unconditional"},
        {"reference": "an empty scene {}", "background": 0.5},
        {"rule": "convex"},
        {"rule": "convex", "guidance_scale": 1.0},
        {"reference": "an empty scene", "guidance_scale": 1.0},
    ]
    requests = []
    for i in range(count):
        options = {
            "sampler": list(SAMPLERS)[i % len(SAMPLERS)],
            "steps": draw.randint(1, 6),
            "guidance_scale": draw.choice([2.0, 3.0, 7.5]),
            "negative_prompt": draw.choice(["", "", "a blue square"]),
            "num_images": draw.choice([1, 1, 2]),
            **ways[i % len(ways)],
            **fixed,
        }
        if options["guidance_scale"] == 1.0:
            options["negative_prompt"] = ""
        if options["sampler"] == "ddim":
            options["eta"] = draw.choice([0.0, 1.0])
        seed_or_seeds = [draw.randrange(99) for _ in range(options["num_images"])]
        prompt = PROMPTS[draw.randrange(len(PROMPTS))]
        requests.append(Request(prompt, Settings(**options), seed=seed_or_seeds))
    return requests


def alone(pipe: Pipeline, request: Request) -> stal.batch.Result:
    (result,) = pipe.batch(
        [request.prompt],
        request.settings,
        layouts=[request.layout],
        weights=[request.weights],
        seed=request.seed,
    )
    return result


def levels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def assert_same(result, expected, *, relative: float, of_255: int) -> None:
    difference = (result.latents - expected.latents).abs().max()
    assert difference <= relative * expected.latents.abs().max()
    assert result.settings == expected.settings
    for image, other in zip(result.images, expected.images, strict=True):
        assert np.abs(levels(image) - levels(other)).max() <= of_255


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The number of requests in each step."""
    found = []
    step = Denoiser.step

    def counted(self):
        found.append(len(self.running))
        return step(self)

    monkeypatch.setattr(Denoiser, "step", counted)
    return found


def shares(engine: Engine) -> bool:
    """Whether two requests of one size are encoded."""
    with engine._loop._lock:
        ready = (Stage.READY, Stage.RUNNING)
        sizes = [t.size for t in engine._scheduler.open() if t.stage in ready]
    return len(sizes) > len(set(sizes))


def arrive(engine: Engine, requests: list[Request], seed: int) -> list:
    """Submits the requests, each a random while after the one before; the results in order.

    The first step waits until two requests are encoded, however busy the machine is.
    """
    draw = random.Random(seed)
    futures = []
    go, step = threading.Event(), engine._stages.step

    def held(size):
        assert go.wait(60)
        return step(size)

    engine._stages.step = held
    for request in requests:
        futures.append(engine.submit(request))
        if len(futures) == 5:
            end = time.monotonic() + 60
            while not shares(engine):
                assert time.monotonic() < end
                time.sleep(0.001)
            go.set()
        time.sleep(draw.choice([0.0, 0.0, 0.01, 0.03]))
    return [future.result(timeout=60) for future in futures]


def test_latents_in_float64_are_those_of_the_pipeline_whenever_a_request_joins(pipe64, calls):
    requests = mixture(12, seed=0)
    with Engine(pipe64, max_rows=5) as engine:
        results = arrive(engine, requests, seed=1)
    assert max(calls) > 1  # they did share their calls
    for request, result in zip(requests, results, strict=True):
        assert_same(result, alone(pipe64, request), relative=1e-9, of_255=1)


def test_pictures_in_float32_are_those_of_the_pipeline_whenever_a_request_joins(pipe, calls):
    requests = mixture(12, seed=2)
    with Engine(pipe, max_rows=16) as engine:
        results = arrive(engine, requests, seed=3)
    assert max(calls) > 1
    for request, result in zip(requests, results, strict=True):
        assert_same(result, alone(pipe, request), relative=1e-3, of_255=2)


def test_pictures_of_xl_and_of_several_sizes_are_those_of_the_pipeline(xl_pipe, calls):
    requests = mixture(4, seed=4) + mixture(4, seed=5, height=8, width=24)
    with Engine(xl_pipe, max_rows=3) as engine:
        results = arrive(engine, requests, seed=6)
    assert max(calls) > 1
    for request, result in zip(requests, results, strict=True):
        assert_same(result, alone(xl_pipe, request), relative=1e-3, of_255=2)


def drawn_in_steps(pipe: Pipeline, requests: list[Request], joins: list[int]) -> list[torch.Tensor]:
    """Latents of requests of which each joins before the step of that number."""
    model = pipe.model
    table = Table(model)
    denoiser = Denoiser(model, table)
    with Engine(pipe) as engine:
        orders = [engine._checked(request) for request in requests]
    held = [table.hold(order.texts) for order in orders]
    table.encode([text for texts in held for text in texts])
    everyone = [
        Running(order, texts, model=model, callback=None)
        for order, texts in zip(orders, held, strict=True)
    ]
    for step in itertools.count():
        for running, when in zip(everyone, joins, strict=True):
            if when == step:
                denoiser.join(running)
        denoiser.step()
        if all(running.ended for running in everyone):
            return [running.x for running in everyone]


@pytest.fixture(scope="module")
def lora_pipes(pipe, tmp_path_factory) -> dict[str | None, Pipeline]:
    """The model, and with one of two LoRAs of queries, keys and a text encoder."""
    pipes = {None: pipe}
    for seed, name in enumerate(("ink", "oil")):
        generator, tensors = torch.Generator().manual_seed(seed), {}
        for part in ("unet", "text_encoder"):
            for path, each in getattr(pipe.model.components, part).named_modules():
                if path.endswith(("attn2.to_q", "attn2.to_k", "self_attn.q_proj")):
                    out, into = each.weight.shape
                    down = torch.randn(2, into, generator=generator)
                    up = torch.randn(out, 2, generator=generator) * each.weight.std()
                    tensors |= {f"{part}.{path}.lora_A.weight": down}
                    tensors |= {f"{part}.{path}.lora_B.weight": up}
        file = tmp_path_factory.mktemp("loras") / f"{name}.safetensors"
        save_file(tensors, file)
        pipes[name] = Pipeline(pipe.model.with_lora(file, 0.8))
    return pipes


def test_requests_of_one_lora_share_their_calls_and_those_of_others_do_not(
    pipe, lora_pipes, monkeypatch
):
    shared, step = [], Denoiser.step

    def noted(self):
        shared.append({running.order.lora for running in self.running})
        counts.append(len(self.running))
        return step(self)

    counts: list[int] = []
    monkeypatch.setattr(Denoiser, "step", noted)
    names = [None, "ink", "oil", "ink", None, "oil"]
    requests = [
        dataclasses.replace(
            each,
            lora=name,
            prompt=TWO,
            settings=dataclasses.replace(each.settings, num_images=1),
            seed=each.seed[0],
        )
        for each, name in zip(mixture(6, seed=9), names, strict=True)
    ]
    loras = {name: each.model for name, each in lora_pipes.items() if name is not None}
    with Engine(pipe, max_rows=4, loras=loras) as engine:
        results = arrive(engine, requests, seed=10)
    assert {frozenset(each) for each in shared} == {frozenset([name]) for name in names}
    assert max(counts) > 1
    for request, result in zip(requests, results, strict=True):
        assert_same(result, alone(lora_pipes[request.lora], request), relative=1e-3, of_255=2)
        assert result.settings.get("loras", []) == [
            {"source": source, "scale": 0.8} for source, _ in lora_pipes[request.lora].model.loras
        ]
    # The tolerance means something: without the LoRA it is another picture.
    without = alone(pipe, requests[1])
    assert np.abs(levels(without.images[0]) - levels(results[1].images[0])).max() > 20


def test_loras_of_another_model_are_refused(pipe, pipe64, lora_pipes):
    with pytest.raises(ValueError, match=r"loras must map names to what Model\.with_lora returns"):
        Engine(pipe, loras={"ink": pipe.model})
    with pytest.raises(ValueError, match="loras must be on the engine's own model, got 'ink'"):
        Engine(pipe64, loras={"ink": lora_pipes["ink"].model})


def test_the_same_batches_draw_the_same_bits(pipe):
    requests = mixture(7, seed=7)
    joins = [0, 0, 1, 0, 2, 0, 0]
    first, second = (drawn_in_steps(pipe, requests, joins) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_text_is_encoded_and_projected_once_however_many_requests_read_it(pipe, monkeypatch):
    encoded, projected = [], []
    encode = pipe.model.encode
    layer = next(iter(Table(pipe.model)._layers.values()))
    project = layer.to_k.forward
    requests = [Request(prompt, Settings(steps=2)) for prompt in (*PROMPTS[1:], *PROMPTS[1:])]
    with Engine(pipe, max_rows=3) as engine:
        # The estimate of memory calls the UNet once.
        engine.submit(Request("a ring", Settings(steps=1, attention="plain"))).result(timeout=60)
        monkeypatch.setattr(
            pipe.model, "encode", lambda texts: (encoded.extend(texts), encode(texts))[1]
        )
        monkeypatch.setattr(
            layer.to_k, "forward", lambda x: (projected.append(len(x)), project(x))[1]
        )
        list(engine.map(requests))
    assert len(encoded) == len(set(encoded)) == sum(projected)
    assert set(PROMPTS[1:]) < set(encoded)
    assert "" not in encoded  # It was before.


def test_rows_of_texts_that_nobody_reads_are_used_again(pipe, monkeypatch):
    monkeypatch.setattr("stal.batch.table._KEPT", 0)
    table = Table(pipe.model)
    for prompt in (*PROMPTS, *PROMPTS):
        (text,) = table.hold([prompt])
        table.encode([text])
        assert table.place(text) <= 1
        name = next(iter(table._layers))
        expected = table._layers[name].to_k(pipe.model.encode([prompt])[0]).detach()
        k = table.layer(name)[0][text.row].transpose(0, 1).flatten(1)
        torch.testing.assert_close(k, expected[0])
        table.release([text])


# One request's troubles


def test_cancel_works_while_a_request_waits_and_while_it_runs(pipe):
    runs = threading.Event()
    with Engine(pipe, max_rows=1) as engine:
        running = engine.submit(Request(TWO, LONG), callback=lambda *_: runs.set())
        waiting = engine.submit(Request(TWO, LONG))
        assert runs.wait(60)
        assert waiting.cancel()
        assert running.cancel()
        with pytest.raises(CancelledError):
            running.result(timeout=60)
        # Its row is free.
        engine.submit(Request(TWO, Settings(steps=1))).result(timeout=60)


@pytest.mark.parametrize("max_rows", [1, 2], ids=["waiting", "running"])
def test_a_request_fails_at_its_deadline(pipe, max_rows):
    with Engine(pipe, max_rows=max_rows) as engine:
        other = engine.submit(Request(TWO, LONG))
        late = engine.submit(Request(TWO, LONG), deadline=0.3)
        with pytest.raises(DeadlineExceeded, match=r"must be done in 0\.3 s"):
            late.result(timeout=60)
        assert not other.done()
        other.cancel()
        in_time = engine.submit(Request(TWO, Settings(steps=1)), deadline=60.0)
        assert in_time.result(timeout=60).images


def test_callbacks_see_each_transition_before_the_result_is_there(pipe):
    settings = Settings(steps=4, sampler="euler")
    seen, expected, previews = [], [], []

    def callback(step, x, denoised):
        seen.append((step, x, denoised))
        previews.extend(pipe.model.decode(denoised))

    pipe(TWO, steps=4, sampler="euler", callback=lambda *event: expected.append(event))
    with Engine(pipe) as engine:
        other = engine.submit(Request(PROMPTS[3], Settings(steps=7)))
        engine.submit(Request(TWO, settings), callback).result(timeout=60)
        assert len(seen) == 4
        other.result(timeout=60)
    assert len(previews) == 4
    for (step, x, denoised), (own_step, own_x, own_denoised) in zip(seen, expected, strict=True):
        assert step == own_step
        torch.testing.assert_close(x, own_x, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(denoised, own_denoised, rtol=1e-3, atol=1e-3)


def test_what_goes_wrong_in_one_request_fails_that_one_alone(pipe, calls):
    class Mine(Exception):
        pass

    def callback(step, x, denoised):
        raise Mine

    good = [Request(prompt, Settings(steps=5)) for prompt in PROMPTS[1:5]]
    # float32 overflows in the blend.
    endless = Request(TWO, Settings(steps=5, reference="a desert"), weights=[3e38, 3e38])
    with Engine(pipe) as engine:
        first = [engine.submit(request) for request in good[:2]]
        not_finite = engine.submit(endless)
        raising = engine.submit(Request(TWO, LONG), callback)
        others = [engine.submit(request) for request in good[2:]]
        with pytest.raises(NotFinite, match="step 0"):
            not_finite.result(timeout=60)
        with pytest.raises(Mine):
            raising.result(timeout=60)
        results = [future.result(timeout=60) for future in (*first, *others)]
    for request, result in zip(good, results, strict=True):
        assert_same(result, alone(pipe, request), relative=1e-3, of_255=2)


def test_a_text_that_cannot_be_encoded_and_latents_that_cannot_be_decoded_fail_alone(
    pipe, monkeypatch
):
    encode, decode = pipe.model.encode, pipe.model.decode

    def no_stars(texts):
        if any("star" in text for text in texts):
            raise RuntimeError("no stars")
        return encode(texts)

    def no_wide(latents):
        if latents.shape[-1] == 12:
            raise RuntimeError("too wide")
        return decode(latents)

    monkeypatch.setattr(pipe.model, "encode", no_stars)
    monkeypatch.setattr(pipe.model, "decode", no_wide)
    settings = Settings(steps=2)
    with Engine(pipe) as engine:
        futures = [engine.submit(Request(prompt, settings)) for prompt in PROMPTS[1:4]]
        wide = engine.submit(Request(TWO, Settings(steps=2, height=16, width=24)))
        with pytest.raises(RuntimeError, match="no stars"):
            futures[0].result(timeout=60)
        with pytest.raises(RuntimeError, match="too wide"):
            wide.result(timeout=60)
        assert all(future.result(timeout=60).images for future in futures[1:])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("  "), "prompt must not be empty"),
        (Request("\ud800"), "prompt must be a text of valid Unicode"),
        (Request(TWO, Settings(steps=0)), "steps must be a positive integer"),
        (Request(TWO, weights=[1.0]), "weights must be"),
        (Request(TWO, seed=[1, 2]), "seed must be one for each of 1 images, got 2"),
        (Request(TWO, Settings(num_images=17)), "num_images must be at most max_rows = 16, got 17"),
        (Request(TWO, Settings(height=9)), "height must be a multiple of 2"),
        (Request(TWO, lora="ink"), "lora must be None in an engine without loras, got 'ink'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_is_checked_before_it_waits(pipe, request_, message):
    with Engine(pipe) as engine, pytest.raises(ValueError, match=message):
        engine.submit(request_)


def test_weights_are_not_optimised_in_a_batch(pipe):
    request = Request(TWO, optimize="online")
    with Engine(pipe) as engine, pytest.raises(NotImplementedError, match="got 'online': search"):
        engine.submit(request)


def test_a_size_that_never_fits_into_memory_is_refused_and_others_wait_for_room(pipe, calls):
    with Engine(pipe) as engine:
        order = engine._checked(Request(TWO, Settings(steps=3)))
        kept, passing, decoding = engine._stages.bytes_of(order)
    # Room for two at once.
    memory = int((2 * kept + 2 * passing) / 0.9) + decoding
    with Engine(pipe, memory=memory) as engine:
        message = r"must fit into the engine's memory of .* MB, got 1024 and 2048, .* take about"
        with pytest.raises(ValueError, match=message):
            engine.submit(Request(TWO, Settings(height=1024, width=2048)))
        results = list(engine.map(Request(TWO, Settings(steps=3), seed=i) for i in range(7)))
        assert engine._scheduler.kept == 0
    assert max(calls) == 2
    assert len(results) == 7


def test_a_prompt_with_control_characters_is_drawn_as_the_pipeline_does(pipe):
    request = Request(
        "a red\x1b[2J circle\x00 to the left of\r a blue square\x07", Settings(steps=2)
    )
    with Engine(pipe) as engine:
        result = engine.submit(request).result(timeout=60)
    assert_same(result, alone(pipe, request), relative=1e-3, of_255=2)


def test_a_function_of_weights_that_raises_fails_its_request_alone(pipe):
    def broken(steps, objects):
        raise TypeError("not so")

    settings = Settings(steps=1)
    requests = [Request(TWO, settings, weights=broken), Request(TWO, settings)]
    with Engine(pipe) as engine:
        outcomes = dict(engine.outcomes(requests))
        engine.close()
        with pytest.raises(EngineClosed):
            next(engine.outcomes(requests))
    assert [type(outcomes[i]).__name__ for i in range(2)] == ["TypeError", "Result"]


def test_a_layout_for_another_prompt_is_warned_of_as_by_the_pipeline(pipe):
    layout = pipe.prepare([TWO], Settings(steps=1)).jobs[0].layout
    assert isinstance(layout, Layout)
    request = Request(PROMPTS[1], Settings(steps=1), layout=layout)
    with Engine(pipe) as engine:
        with pytest.warns(UserWarning, match="the layout is of another prompt") as seen:
            future = engine.submit(request)
        assert seen[0].filename == __file__
        assert future.result(timeout=60).layout == layout


# Many requests


def test_map_keeps_the_order_and_reads_an_endless_source_as_results_are_taken(pipe):
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield Request(PROMPTS[i % 6], Settings(steps=1 + i % 3), seed=i)

    with Engine(pipe, max_rows=2) as engine:
        results = engine.map(endless(), ahead=3)
        first = list(itertools.islice(results, 5))
        assert [result.settings["seeds"] for result in first] == [[i] for i in range(5)]
        assert len(read) <= 5 + 3
        results.close()
        assert engine.submit(Request(TWO, Settings(steps=1))).result(timeout=60)


def test_map_raises_at_the_place_of_the_request_and_outcomes_go_on(pipe):
    settings = Settings(steps=1)
    requests = [Request(TWO, settings), Request("", settings), Request(PROMPTS[1], settings)]
    with Engine(pipe) as engine:
        results = engine.map(requests)
        assert next(results).settings["prompt"] == TWO
        with pytest.raises(ValueError, match="prompt must not be empty"):
            next(results)
        outcomes = dict(engine.outcomes(requests, ahead=2))
    assert [type(outcomes[i]).__name__ for i in range(3)] == ["Result", "ValueError", "Result"]
    assert outcomes[2].settings["prompt"] == PROMPTS[1]


def test_asyncio_awaits_results_and_cancels_requests(pipe):
    async def main(engine):
        settings = Settings(steps=2)
        results = await asyncio.gather(
            *(engine.asubmit(Request(p, settings)) for p in PROMPTS[1:4])
        )
        endless = asyncio.create_task(engine.asubmit(Request(TWO, LONG)))
        await asyncio.sleep(0.1)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        assert engine._scheduler.idle  # the request has gone with its task
        return [result.settings["prompt"] for result in results]

    with Engine(pipe, max_rows=2) as engine:
        assert asyncio.run(main(engine)) == PROMPTS[1:4]


# The end


def test_close_draws_what_was_taken_and_takes_no_more(pipe):
    engine = Engine(pipe, max_rows=1)
    futures = [engine.submit(Request(TWO, Settings(steps=2), seed=i)) for i in range(3)]
    engine.close()
    assert all(future.done() for future in futures)
    assert all(future.result().images for future in futures)
    with pytest.raises(EngineClosed):
        engine.submit(Request(TWO))
    engine.close()


def test_close_without_draining_cancels_and_so_does_an_exception(pipe):
    engine = Engine(pipe, max_rows=1)
    futures = [engine.submit(Request(TWO, LONG)) for _ in range(3)]
    engine.close(drain=False)
    assert all(future.cancelled() for future in futures)
    left = []

    def interrupted():
        with Engine(pipe) as engine:
            left.append(engine.submit(Request(TWO, LONG)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert left[0].cancelled()


def test_an_engine_that_nobody_holds_draws_what_it_has_and_its_threads_end(pipe):
    before = threading.active_count()
    engine = Engine(pipe)
    gone = weakref.ref(engine)
    future = engine.submit(Request(TWO, Settings(steps=2)))
    del engine
    gc.collect()
    assert gone() is None
    assert future.result(timeout=60).images
    assert threading.active_count() <= before


def test_nothing_of_a_request_is_kept_but_its_result(pipe):
    stages = ModelStages({None: pipe.model})
    with Engine(pipe) as engine:
        engine._loop._stages = engine._stages = stages
        works = []
        encode = stages.encode
        stages.encode = lambda tickets: (
            works.extend(weakref.ref(ticket.work) for ticket in tickets),
            encode(tickets),
        )[1]
        futures = [engine.submit(Request(prompt, Settings(steps=2))) for prompt in PROMPTS[1:]]
        for future in futures:
            future.result(timeout=60)
        engine.close()
    assert len(works) == 5
    gc.collect()
    assert all(work() is None for work in works)
    assert not stages._tickets
    assert not stages._denoisers
    assert all(text.users == 0 for text in stages._networks[None].table._texts.values())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_in_steps_is_the_sampler(pipe, sampler):
    drawing = pipe.prepare([TWO], Settings(steps=4, sampler=sampler))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def model(x, t, step):
        return torch.sin(3 * x) * (1 + t / 1000) + step

    def noise(x):
        return torch.cos(5 * x)

    seen = []
    options = {"noise": noise, "callback": lambda *event: seen.append(event)}
    expected = SAMPLERS[sampler](model, x, drawing.schedule, **options)
    running = SAMPLERS[sampler].steps(x, drawing.schedule, **options)
    sent, calls, final = None, -1, None
    while final is None:
        calls += 1
        try:
            sent = model(*running.send(sent))
        except StopIteration as stop:
            final = stop.value
    assert torch.equal(final, expected)
    assert calls == 4 + (sampler == "plms")
    assert all(torch.equal(a[1], b[1]) for a, b in zip(seen[:4], seen[4:], strict=True))
    running = SAMPLERS[sampler].steps(x, drawing.schedule, **options)
    next(running)
    with pytest.raises(NotFinite, match="step 0"):
        running.send(torch.full_like(x, torch.nan))


def test_orders_of_pixels_are_made_a_request_and_joined(pipe, monkeypatch):
    """As on a GPU; the cpu backend takes such plans too and refuses one of other regions."""
    made = []

    def planned(region, ids, offsets):
        made.append(region.shape)
        return plan(region, ids, offsets)

    monkeypatch.setattr("stal.batch.maps.plan_of", planned)
    requests = mixture(6, seed=8)
    expected = [alone(pipe, request) for request in requests]
    joins = [0, 0, 1, 0, 2, 1]
    for own, right in zip(drawn_in_steps(pipe, requests, joins), expected, strict=True):
        assert (own - right.latents).abs().max() <= 1e-3 * right.latents.abs().max()
    # At each of the three resolutions at most, a blended request's once; the others are shared.
    several = [shape for shape in made if shape[0] > 1]
    assert 0 < len(several) <= 3 * len(requests)
