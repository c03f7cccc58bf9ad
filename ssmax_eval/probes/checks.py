"""What is checked before a probe reads a prompt: parameters, tokenizer, positions; and whether needles stand where they were asked."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import FAR_OFF
from ..errors import UserError, nearest
from ..position.learned import position_end


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int, positions: int) -> None:
    """Raise UserError if the tokenizer is not the model's, or learned positions do not reach as far as is asked."""
    rows = model.get_input_embeddings().weight.shape[0]
    if (largest := max(tokenizer.get_vocab().values())) >= rows:
        raise UserError(
            f"tokenizer: its largest token id is {largest}, but {type(model).__name__} has {rows} embeddings; "
            "it is not this model's tokenizer"
        )
    limit = position_end(model)
    if limit is not None and positions > limit:
        raise UserError(
            f"context length {asked}: {type(model).__name__} has {limit} learned positions; "
            f"give at most {limit - positions + asked}"
        )


def require(condition: bool, what: str, value: object, allowed: str) -> None:
    if not condition:
        near = nearest(value, re.split(", | or ", allowed)) if isinstance(value, str) else ""
        raise UserError(f"{what}{'' if value == '' else f' {value!r}'}: allowed are {allowed}{near}")


@dataclass
class DepthsOff:
    """The needles that stand further from their depth than FAR_OFF, to say so once."""

    haystack: str
    seen: int = 0
    far: list[tuple[float, float, float]] = field(default_factory=list)  # points off, asked, realised

    def see(self, rows: Sequence[dict[str, Any]]) -> None:
        pairs = [(row["depth_percent"], row["realised_depth_percent"]) for row in rows]
        known = [(abs(asked - real), asked, real) for asked, real in pairs if asked is not None and real is not None]
        self.seen += len(known)
        self.far += [each for each in known if each[0] > FAR_OFF]

    def say(self) -> None:
        if self.far:
            _, asked, real = max(self.far)
            logging.getLogger(__name__).warning(
                "ssmax-eval: note: haystack %s: %d of %d needles stand more than %d points from the depth asked (the furthest: "
                "asked %g, placed %.0f), for want of sentence ends there; realised_depth_percent has each",
                self.haystack,
                len(self.far),
                self.seen,
                FAR_OFF,
                asked,
                real,
            )
