"""Positions that a model looks up in a table, learned or computed beforehand."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .rotary import rotary_modules

MOST_SPARE_ROWS = 8  # of a table of positions beyond those that the config tells: OPT and Bart have 2


def position_end(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model has positions for: the rows of a table; None where no table ends it (RoPE, ALiBi, recurrence)."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1 or rotary_modules(model):
        return None
    tables = [module.weight for module in embeddings_beside_words(model).values()]
    tables += [buffer for buffer in model.buffers() if buffer.ndim == 2]  # sines (CTRL), angles (GPT-J)
    return limit if any(is_of_positions(len(table), limit) for table in tables) else None


def embeddings_beside_words(model: PreTrainedModel) -> dict[str, nn.Embedding]:
    """Return a model's tables of vectors by name, that of its words left out."""
    words = model.get_input_embeddings()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding) and m is not words}


def is_of_positions(rows: int, limit: int) -> bool:
    """Tell whether a table has the rows of one of positions."""
    return limit <= rows <= limit + MOST_SPARE_ROWS


class NoTable(nn.Module):
    """What stands where a table of positions stood: it adds nothing, at any position."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(())  # without dimensions it fits any shape, dtype and device


def take_table_out(model: PreTrainedModel) -> None:
    """Leave a model without its learned positions, and so without an end of them; a model that has none stays as it is."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int):
        for name, table in embeddings_beside_words(model).items():
            if is_of_positions(len(table.weight), limit):
                model.set_submodule(name, NoTable())
