"""An experiment on attention: in the last rows of a forward, queries are multiplied, or something is added to their scores.

It is no mechanism: it stands beside whatever a layer attends with, and nothing of it is saved.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .mechanism import Mechanism
from .seen import Seen

ALL_ROWS = 2**31  # more than any forward has


@dataclass(frozen=True, eq=False)
class Edit:
    """What is changed on one layer, in the last `rows` rows of every forward; earlier rows stay as they are.

    factor (heads or 1,), or where prompts or rows differ (batch or 1, heads or 1, rows), or what returns that for all rows of a
    forward: what each head's queries are multiplied with, after its mechanism, so its scores too. shift: given the scores of these
    rows, float32 (batch, heads, rows, keys), -inf where they may not look, and what they see, returns what
    is added to them, of the same shape and finite.
    """

    rows: int
    factor: Tensor | Callable[[Seen], Tensor] | None = None
    shift: Callable[[Tensor, Seen], Tensor] | None = None

    def scaled(self, query: Tensor, seen: Seen) -> Tensor:
        """Return queries (batch, heads, rows, channels) with the last ones multiplied; float32 products, rounded once."""
        if self.factor is None:
            return query
        before, last = query[:, :, : -self.rows], query[:, :, -self.rows :]
        factor = (self.factor(seen) if callable(self.factor) else self.factor).to(query.device, torch.float32)
        factor = factor[:, None, None] if factor.ndim == 1 else factor[..., -self.rows :, None]
        return torch.cat([before, (last.float() * factor).to(query.dtype)], 2)

    def shifted(self, mechanism: Mechanism, query: Tensor, key: Tensor, seen: Seen) -> Tensor | None:
        """Return an additive mask (batch, heads, rows, keys) in the queries' dtype: what is hidden, and what is added."""
        if self.shift is None:
            return None
        batch, heads, rows, _ = query.shape
        last = seen.at(torch.arange(max(0, rows - self.rows), rows, device=query.device).expand(batch, -1))
        scores = mechanism.biased(mechanism.scores(query[:, :, -self.rows :], key, last), last)
        shift = self.shift(scores.masked_fill(~last.mask, -torch.inf), last)
        given = seen.forward.attention_mask
        own = torch.zeros(1, device=query.device) if given is None or given.dtype == torch.bool else given.float()
        mask = own.expand(batch, heads, rows, -1 if own.ndim > 1 else seen.forward.keys).clone()
        mask[:, :, -self.rows :] += shift
        return mask.to(query.dtype).masked_fill(~seen.mask, torch.finfo(query.dtype).min)
