"""Masses that heads are to have on some keys: by how much their scores have to move, in closed form.

Where weights are a softmax of scores, ln(mass / rest) of a row moves by what is added to the scores of the keys it is on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .mechanism import Mechanism
from .seen import Seen

LEAST = 1e-6  # from 0 and from 1: what a mass has to be for its odds


@dataclass(frozen=True, eq=False)
class Wanted:
    """What some heads of a layer are to have on some keys.

    heads: which. keys (batch, rows, keys), bool: what their mass is summed over. mass (batch, heads, rows): as much, 0 to 1;
    NaN in rows that stay as they are.
    """

    heads: Sequence[int]
    keys: Tensor
    mass: Tensor


def towards(wanted: Sequence[Wanted], give: bool) -> Callable[[Tensor, Seen], Tensor]:
    """Return an Edit's shift after which heads have at least (give) or at most as much as is wanted, one after the other.

    A head that has it already stays as it is, and so does one that sees none of the keys.
    """

    def shift(scores: Tensor, seen: Seen) -> Tensor:
        moved = scores.new_zeros(scores.shape)
        for each in wanted:
            heads = list(each.heads)
            keys = each.keys[:, None].to(scores.device)
            now = scores[:, heads] + moved[:, heads]
            odds = now.masked_fill(~keys, -math.inf).logsumexp(-1) - now.masked_fill(keys, -math.inf).logsumexp(-1)
            by = each.mass.to(odds).clamp(LEAST, 1 - LEAST).logit() - odds
            by = by.where(odds.isfinite() & by.isfinite(), 0.0)
            moved[:, heads] += (by.clamp(min=0) if give else by.clamp(max=0))[..., None] * keys
        return moved

    return shift


def is_softmax(mechanism: Mechanism) -> bool:
    """Tell whether a mechanism's weights are a softmax of its scores, whatever these are."""
    parts = ("weights", "begin", "attend", "mix")
    return all(getattr(type(mechanism), part) is getattr(Mechanism, part) for part in parts)
