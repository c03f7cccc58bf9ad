"""What a query scale does to one large score among n, in closed form: fading without a model."""

import math
from collections.abc import Sequence

import pandas as pd
import torch

from ..errors import UserError
from .mechanism import Layer
from .scales import QueryScale
from .spelling import LARGEST_LENGTH, Attention

HIGH, LOW = 3.0, -2.0  # the scores of the paper's Figure 1
LEADS = [lead / 4 for lead in range(41)]


def scale_of(attention: str, train_length: int) -> QueryScale:
    """Return a query scale with one head, its learned values where they start. Raises UserError for any other mechanism."""
    asked = Attention.of(attention)
    length = asked.train_length or train_length
    if not 2 <= length <= LARGEST_LENGTH:
        raise UserError(f"train_length {length}: allowed are whole numbers, 2 to {LARGEST_LENGTH}")
    if not issubclass(asked.mechanism, QueryScale):
        raise UserError(
            f"attention {asked.mechanism.name}: it is no query scale C(n), so there is no closed form to show"
        )
    made = asked.on(Layer(heads=1, train_length=length))
    assert isinstance(made, QueryScale)
    return made


def largest_weight(scale: QueryScale, n: float, lead: float) -> float:
    """Return the weight of one score that leads n - 1 equal ones, n > 1: 1 / ((n - 1) exp(-C(n) lead) + 1)."""
    with torch.no_grad():
        factor = float(scale(torch.tensor([[[float(n)]]])).flatten()[0])
    return float(torch.tensor(factor * lead - math.log(n - 1), dtype=torch.float64).sigmoid())


def decades(largest: int) -> list[int]:
    """Return 10, 100, ... up to `largest`, itself included. Raises UserError for less than 10."""
    if not 10 <= largest <= LARGEST_LENGTH:
        raise UserError(f"largest n {largest}: allowed are whole numbers, 10 to {LARGEST_LENGTH}")
    return [*(10**k for k in range(1, 9) if 10**k < largest), largest]


def by_length(scales: Sequence[str], train_length: int, largest: int) -> pd.DataFrame:
    """Return the weight of +3 among n - 1 scores of -2 for n = 10, 100, ... (Figure 1): columns attention, n, weight."""
    return pd.DataFrame(
        {"attention": each, "n": n, "weight": largest_weight(scale_of(each, train_length), n, HIGH - LOW)}
        for each in scales
        for n in decades(largest)
    )


def by_lead(scales: Sequence[str], train_length: int, largest: int) -> pd.DataFrame:
    """Return the weight of a score by its lead over n - 1 equal ones: columns attention, n, lead, weight.

    SSMax gives the largest score its weight when it leads by more than 1 / s, and spreads attention when by less, for
    large n (what the paper's section on its bounds says, and Figure 3 as far as it is known here).
    """
    return pd.DataFrame(
        {"attention": each, "n": n, "lead": lead, "weight": largest_weight(scale_of(each, train_length), n, lead)}
        for each in scales
        for n in decades(largest)
        for lead in LEADS
    )
