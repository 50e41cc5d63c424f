"""What the loop does with tickets of a model: encode, join, step, leave, decode."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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
from stal.openmp import release_team, releasing_team
from stal.sampler import Callback


@dataclass(eq=False)
class Work:
    """What the stages know of a ticket."""

    order: CheckedRequest
    callback: Callback | None
    texts: list[Text] | None = None
    running: Running | None = None


class ModelStages:
    """The stages of `stal.batch.loop` for one model, and for the same one with LoRAs.

    Args:
        models: by the name of the LoRA; that of None has none.
    """

    def __init__(self, models: Mapping[str | None, Model]) -> None:
        self._networks = {name: _Networks(model) for name, model in models.items()}
        self._denoisers: dict[Hashable, Denoiser] = {}
        self._tickets: dict[Running, Ticket] = {}

    @releasing_team()
    def encode(self, tickets: Sequence[Ticket]) -> None:
        by_lora: dict[str | None, list[Ticket]] = {}
        for ticket in tickets:
            by_lora.setdefault(ticket.work.order.lora, []).append(ticket)
        held: list[tuple[Ticket, list[Text]]] = []
        try:
            for lora, own in by_lora.items():
                table = self._networks[lora].table
                new = [(ticket, table.hold(ticket.work.order.texts)) for ticket in own]
                held += new
                table.encode([text for _, texts in new for text in texts])
        except BaseException:
            for ticket, texts in held:
                self._of(ticket).table.release(texts)
            raise
        for ticket, texts in held:
            ticket.work.texts = texts

    def join(self, ticket: Ticket) -> None:
        work, networks = ticket.work, self._of(ticket)
        running = Running(work.order, work.texts, model=networks.model, callback=work.callback)
        if ticket.size not in self._denoisers:
            self._denoisers[ticket.size] = Denoiser(networks.model, networks.table)
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
        if not self._denoisers:
            release_team()
        self._of(ticket).table.release(work.texts)

    @releasing_team()
    @torch.no_grad()
    def decode(self, tickets: Sequence[Ticket]) -> list[Result | None]:
        """None for those that are done meanwhile."""
        going_on = [(i, ticket.work) for i, ticket in enumerate(tickets) if ticket.work is not None]
        results: list[Result | None] = [None] * len(tickets)
        if going_on:
            model = self._networks[going_on[0][1].order.lora].model  # that of all: of one size
            latents = [work.running.x for _, work in going_on]
            images = iter(model.decode(torch.cat(latents)))
            for (i, work), own in zip(going_on, latents, strict=True):
                order = work.order
                results[i] = Result(
                    [next(images) for _ in own],
                    order.job.layout,
                    order.job.weights,
                    own,
                    record_of(model, order.job, order.settings, order.seeds, order.job.weights),
                )
        return results

    def bytes_of(self, order: CheckedRequest) -> tuple[int, int, int]:
        """Kept, passing and decoding of a ticket, see there."""
        return self._networks[order.lora].bytes_of(order)

    def _of(self, ticket: Ticket) -> _Networks:
        return self._networks[ticket.work.order.lora]


class _Networks:
    """A model, the table of the prompts that it has encoded, and what its requests take."""

    def __init__(self, model: Model) -> None:
        self.model, self.table = model, Table(model)

    def bytes_of(self, order: CheckedRequest) -> tuple[int, int, int]:
        settings, unit = order.settings, self.model.scale_factor
        cells = settings.height * settings.width // unit**2
        n, itemsize = settings.num_images, max(self.model.dtype.itemsize, 4)
        # x, what the sampler has kept of four steps, noise, and a copy for a preview.
        latents = 8 * n * cells * self.model.unet.config.in_channels * itemsize
        kept = latents + len(order.texts) * self._row_bytes
        passing = int(n * (1 + order.guided) * cells * self._unet_bytes_a_cell)
        return kept, passing, int(n * cells * self._vae_bytes_a_cell)

    @cached_property
    def _row_bytes(self) -> int:
        c = self.model.components
        longest = prompt_length(c.tokenizer, c.text_encoder.config.max_position_embeddings)
        return self.table.row_bytes(longest)

    @cached_property
    def _unet_bytes_a_cell(self) -> float:
        return memory.unet_bytes_a_cell(self.model)

    @cached_property
    def _vae_bytes_a_cell(self) -> float:
        return memory.vae_bytes_a_cell(self.model)
