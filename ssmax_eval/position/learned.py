"""Positions that end: tables of them, learned or computed beforehand, and lengths that a model's own code holds to."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .rotary import rotary_modules

MOST_SPARE_ROWS = 8  # of a table of positions beyond those that the config tells: OPT and Bart have 2
LIMITS = ("max_position_embeddings", "max_target_positions", "max_seq_len")


def position_end(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model has positions for; None where nothing ends them (RoPE, recurrence, most ALiBi).

    A table ends them, by its rows; or a length of the config that a forward of the model asks for by its name: MPT makes its ALiBi
    for so many tokens, and Reformer takes no more.
    """
    if rotary_modules(model):
        return None
    config = model.config.get_text_config()
    limits = {name: limit for name in LIMITS if isinstance(limit := getattr(config, name, None), int) and limit > 0}
    tables = [(len(table), first) for table, first in tables_beside_words(model)]
    ends = [
        min(limit, rows - first) for limit in limits.values() for rows, first in tables if is_of_positions(rows, limit)
    ]
    asked = {name for module in model.modules() for name in names_in(type(module).forward)}
    return min([*ends, *(limit for name, limit in limits.items() if name in asked)], default=None)


def tables_beside_words(model: PreTrainedModel) -> list[tuple[Tensor, int]]:
    """Return every table by position that a model may have, and the row of its first position.

    A table with a row for padding counts from the row after it (RoBERTa, and all that fairseq wrote). Buffers are sines (CTRL)
    and angles (GPT-J).
    """
    words = model.get_input_embeddings()
    found = []
    for module in model.modules():
        weight = getattr(module, "weight", None)
        looked_up = isinstance(module, nn.Embedding) or hasattr(module, "padding_idx")  # I-BERT's is no nn.Embedding
        if looked_up and isinstance(weight, Tensor) and module is not words:
            padding = getattr(module, "padding_idx", None)
            found.append((weight, padding + 1 if isinstance(padding, int) else 0))
    return found + [(buffer, 0) for buffer in model.buffers() if buffer.ndim == 2]


def names_in(function: Any) -> tuple[str, ...]:
    """Return the names of attributes and globals that a function's code asks for."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return () if code is None else code.co_names


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
