"""The requests of one size that are being drawn: a call of the UNet for all, an update for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stal import sampler as samplers
from stal.batch.maps import RequestMaps, Rows
from stal.batch.request import CheckedRequest
from stal.batch.table import Table, Text
from stal.model.model import Model
from stal.noise import ImageNoise
from stal.sampler import Callback
from stal.torch_state import undisturbed


class Running:
    """A request on its trajectory: what its sampler has yielded and waits for the prediction of.

    x, t, step: as samplers call their model; x is what the sampler returned once `ended`.
    error: what went wrong, if anything did.
    """

    def __init__(
        self,
        order: CheckedRequest,
        texts: Sequence[Text],
        *,
        model: Model,
        callback: Callback | None,
    ) -> None:
        self.order, self.texts = order, texts
        self.maps = RequestMaps(order, model.device)
        self.ended, self.error = False, None
        settings, unit = order.settings, model.scale_factor
        noise = ImageNoise(1, settings.num_images, order.seeds, None)
        cells = settings.height // unit, settings.width // unit
        x = noise.initial(model.unet.config.in_channels, *cells).to(model.device, model.dtype)
        options = {"eta": settings.eta} if order.schedule.sampler == "ddim" else {}
        self._steps = samplers.by_name(order.schedule.sampler).steps(
            x, order.schedule, noise=noise, callback=callback, **options
        )
        self.x, self.t, self.step = next(self._steps)

    x: Tensor
    t: float
    step: int
    error: Exception | None

    def advance(self, prediction: Tensor) -> None:
        """Hands the sampler the prediction for x, t and step."""
        try:
            self.x, self.t, self.step = self._steps.send(prediction)
        except StopIteration as stop:
            self.x, self.ended = stop.value, True
        except Exception as error:
            self.error, self.ended = error, True


class Denoiser:
    """Requests of one size that share the calls of the UNet, wherever on its way each of them is.

    Args:
        model: the networks.
        table: of the prompts of all requests.
    """

    def __init__(self, model: Model, table: Table) -> None:
        self._model, self._table = model, table
        self.running: list[Running] = []
        self._rows: Rows | None = None
        self._added: dict[str, Tensor] | None = None
        self._scales = torch.empty(0)

    def join(self, request: Running) -> None:
        for text in request.texts:
            self._table.place(text)
        self.running.append(request)
        self._rows = None

    def leave(self, request: Running) -> None:
        if request in self.running:
            self.running.remove(request)
            self._rows = None

    @undisturbed()
    @torch.no_grad()
    def step(self) -> list[Running]:
        """One call of the UNet and an update of each request; those that have ended leave."""
        rows = self._rows or self._arranged()
        x = torch.cat([request.x for request in self.running])
        times = [r.t for r in self.running for _ in range(r.order.settings.num_images)]
        t = torch.tensor(times, dtype=torch.float64, device=x.device)
        attention = rows.at([request.step for request in self.running])
        guided = rows.guided
        prediction = self._model.unet(
            torch.cat([x[:guided], x]),
            torch.cat([t[:guided], t]),
            None,
            self._added,
            attention=attention,
        )
        unconditional, prediction = prediction[:guided], prediction[guided:]
        if guided:
            scaled = unconditional + self._scales * (prediction[:guided] - unconditional)
            prediction = torch.cat([scaled, prediction[guided:]])
        each = prediction.split(rows.pictures)
        for request, own in zip(self.running, each, strict=True):
            request.advance(own)
        ended = [request for request in self.running if request.ended]
        for request in ended:
            self.leave(request)
        return ended

    def _arranged(self) -> Rows:
        """The rows of the requests that run now, in the order that `stal.batch.maps` states."""
        model = self._model
        # A stable sort: the same requests that joined in the same order make the same call.
        self.running.sort(key=lambda r: (not r.order.guided, not r.maps.loses_unconditional))
        requests = [
            (r.order, r.maps, [self._table.place(text) for text in r.texts]) for r in self.running
        ]
        self._rows = rows = Rows(requests, self._table, model.device)
        scales = [
            r.order.settings.guidance_scale
            for r in self.running
            for _ in range(r.order.settings.num_images * r.order.guided)
        ]
        self._scales = torch.tensor(scales, dtype=model.dtype, device=model.device)
        self._scales = self._scales[:, None, None, None]
        pooled = self._table.pooled(rows.own)
        size = self.running[0].order.settings
        self._added = model.added_conditions(pooled, height=size.height, width=size.width)
        return rows
