"""Positions that a model looks up in a table, learned or computed beforehand."""

from torch import nn
from transformers import PreTrainedModel

from .rope import rotary_modules

MOST_SPARE_ROWS = 8  # of a table of positions beyond those that the config tells: OPT and Bart have 2


def position_end(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model has positions for: the rows of a table; None where no table ends it (RoPE, ALiBi, recurrence)."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1 or rotary_modules(model):
        return None
    words = model.get_input_embeddings()
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    tables += [buffer for buffer in model.buffers() if buffer.ndim == 2]  # sines (CTRL), angles (GPT-J)
    return limit if any(limit <= len(table) <= limit + MOST_SPARE_ROWS for table in tables) else None
