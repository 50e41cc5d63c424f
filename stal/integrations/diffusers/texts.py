"""Prompts, the phrases of their layouts and their references, encoded as a pipeline's call does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stal.checked_json import short
from stal.finite import check_finite
from stal.integrations.diffusers.adapters import speaking
from stal.integrations.diffusers.encoded import Encoded, check_embeds, joined
from stal.integrations.diffusers.models import Row
from stal.prompts import parse
from stal.settings import check_text, reference_prompt


@dataclass(frozen=True)
class Encoder:
    """The text encoders of a pipeline.

    Attributes:
        pipe, model: the pipeline and the row of its denoiser.
        options: further arguments for its `encode_prompt`.
        adapters: those of all regions. One is silent but for the texts that it belongs to.
    """

    pipe: Any
    model: Row
    options: Mapping[str, Any]
    adapters: tuple[str, ...]

    def encode(self, texts: Sequence[str], adapters: tuple[str, ...] = ()) -> Encoded:
        """The texts, to which these adapters belong.

        Raises:
            ValueError: the pipeline has no text encoder or refuses the options, or it gives what
                is not finite.
        """
        encoders = (getattr(self.pipe, name, None) for name in ("text_encoder", "text_encoder_2"))
        if all(encoder is None for encoder in encoders):
            raise ValueError(
                "prompt_embeds and local_embeds must be given, and reference_embeds or"
                " reference='unconditional', since the pipeline has no text encoder, got"
                f" text: {', '.join(map(short, texts[:3]))}"
            )
        with speaking(self.pipe, self.adapters, adapters):
            try:
                found = self.model.encode(self.pipe, texts, self.options)
            except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
                if not self.options:
                    raise
                got = f"{short(dict(self.options))}: {error}"
                raise ValueError(
                    "encode must be of arguments that the pipeline's encode_prompt takes beside"
                    f" the texts, the same for all of them, got {got}"
                ) from error
        check_finite("what the text encoder gives", found.embeds, found.embeds.dtype)
        return found

    def phrases(
        self,
        given: Any,
        phrases: Sequence[str],
        adapters: Sequence[tuple[str, ...]],
        known: Encoded,
    ) -> Encoded:
        """The local prompts of a layout, each with its own adapters, or what is given of them.

        known: the global prompts.
        """
        if given is not None:
            count, of = (len(phrases),), "objects of the layout"
            return check_embeds("local_embeds", given, prompts=count, like=known, of=of)
        if not phrases:
            return known.rows(slice(0))
        found: dict[int, Encoded] = {}
        for names in dict.fromkeys(adapters):
            own = [index for index, each in enumerate(adapters) if each == names]
            table = self.encode([phrases[index] for index in own], names)
            found |= {index: table.rows(slice(row, row + 1)) for row, index in enumerate(own)}
        return joined([found[index] for index in range(len(phrases))])

    def references(
        self, reference: str, prompts: Sequence[str | None], given: Any, known: Encoded
    ) -> list[Encoded]:
        """The reference prompt of each prompt, or what is given of it: one for all, or one each."""
        if given is None:
            check_text("reference", reference)
            backgrounds = [parse(text).background if text else "" for text in prompts]
            return [self.encode([reference_prompt(reference, each) for each in backgrounds])]
        name, count = "reference_embeds", len(prompts)
        if not isinstance(given, list):
            found = check_embeds(name, given, prompts=sorted({1, count}), like=known)
            return [found] * (count // len(found.embeds))
        if len(given) != count:
            raise ValueError(f"{name} must be a list of {count}, one a prompt, got {len(given)}")
        return [check_embeds(name, each, prompts=(1,), like=known) for each in given]

    def table(self, parts: Sequence[Encoded]) -> Encoded:
        """Local prompts and references as one table.

        Raises:
            ValueError: the model needs more of them than was given.
        """
        table = joined(parts)
        if self.model.at_each_step is not None and len(table.embeds) and table.pooled is None:
            raise ValueError(
                f"local_embeds and reference_embeds must be left out for {self.model.name}, which"
                " needs the embedding of a second text encoder too, got some: give the layout's"
                " phrases and a reference"
            )
        return table
