"""What the loop does with tickets of a model: encode, join, step, leave, decode."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from stal.batch import memory
from stal.batch.denoiser import Denoiser, Running
from stal.batch.request import CheckedRequest
from stal.batch.scheduler import Ticket
from stal.batch.table import Table, Text
from stal.drawing import Result, record_of
from stal.model.checkpoint import prompt_length
from stal.model.model import Model
from stal.sampler import Callback


@dataclass(eq=False)
class Work:
    """What the stages know of a ticket."""

    order: CheckedRequest
    callback: Callback | None
    texts: list[Text] | None = None
    running: Running | None = None


class ModelStages:
    """The stages of `stal.batch.loop` for one model."""

    def __init__(self, model: Model) -> None:
        self._model, self._table = model, Table(model)
        self._denoisers: dict[Hashable, Denoiser] = {}
        self._tickets: dict[Running, Ticket] = {}

    def encode(self, tickets: Sequence[Ticket]) -> None:
        held = [self._table.hold(ticket.work.order.texts) for ticket in tickets]
        try:
            self._table.encode([text for texts in held for text in texts])
        except BaseException:
            for texts in held:
                self._table.release(texts)
            raise
        for ticket, texts in zip(tickets, held, strict=True):
            ticket.work.texts = texts

    def join(self, ticket: Ticket) -> None:
        work = ticket.work
        running = Running(work.order, work.texts, model=self._model, callback=work.callback)
        if ticket.size not in self._denoisers:
            self._denoisers[ticket.size] = Denoiser(self._model, self._table)
        self._denoisers[ticket.size].join(running)
        work.running = running
        self._tickets[running] = ticket

    def step(self, size: Hashable) -> list[tuple[Ticket, Exception | None]]:
        denoiser = self._denoisers.get(size)
        # Whoever was to join may have failed to.
        ended = denoiser.step() if denoiser is not None and denoiser.running else []
        return [(self._tickets[running], running.error) for running in ended]

    def leave(self, ticket: Ticket) -> None:
        work = ticket.work
        if work.running is not None:
            self._tickets.pop(work.running)
            denoiser = self._denoisers.get(ticket.size)
            if denoiser is not None:
                denoiser.leave(work.running)
        for size in [s for s, denoiser in self._denoisers.items() if not denoiser.running]:
            del self._denoisers[size]
        self._table.release(work.texts)

    @torch.no_grad()
    def decode(self, tickets: Sequence[Ticket]) -> list[Result | None]:
        """None for those that are done meanwhile."""
        going_on = [(i, ticket.work) for i, ticket in enumerate(tickets) if ticket.work is not None]
        results: list[Result | None] = [None] * len(tickets)
        if going_on:
            latents = [work.running.x for _, work in going_on]
            images = iter(self._model.decode(torch.cat(latents)))
            for (i, work), own in zip(going_on, latents, strict=True):
                order = work.order
                results[i] = Result(
                    [next(images) for _ in own],
                    order.job.layout,
                    order.job.weights,
                    own,
                    record_of(
                        self._model, order.job, order.settings, order.seeds, order.job.weights
                    ),
                )
        return results

    def bytes_of(self, order: CheckedRequest) -> tuple[int, int, int]:
        """Kept, passing and decoding of a ticket, see there."""
        settings, unit = order.settings, self._model.scale_factor
        cells = settings.height * settings.width // unit**2
        n, itemsize = settings.num_images, max(self._model.dtype.itemsize, 4)
        # x, what the sampler has kept of four steps, noise, and a copy for a preview.
        latents = 8 * n * cells * self._model.unet.config.in_channels * itemsize
        kept = latents + len(order.texts) * self._row_bytes
        passing = int(n * (1 + order.guided) * cells * self._unet_bytes_a_cell)
        return kept, passing, int(n * cells * self._vae_bytes_a_cell)

    @cached_property
    def _row_bytes(self) -> int:
        c = self._model.components
        longest = prompt_length(c.tokenizer, c.text_encoder.config.max_position_embeddings)
        return self._table.row_bytes(longest)

    @cached_property
    def _unet_bytes_a_cell(self) -> float:
        return memory.unet_bytes_a_cell(self._model)

    @cached_property
    def _vae_bytes_a_cell(self) -> float:
        return memory.vae_bytes_a_cell(self._model)
