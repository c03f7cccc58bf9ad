"""Why a prompt was not found: from its answer, its attention and its haystack's nll, all of one forward."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import UserError
from .clusters import with_plan
from .kinds import on_prompts, where
from .series import TASK

FOUND, ATTENDED, FADED, UNREACHED = "found", "attended, wrong", "not attended", "out of reach"
BLOWN_UP, UNKNOWN = "position blow-up", "unknown"
CAUSES = (FOUND, ATTENDED, FADED, UNREACHED, BLOWN_UP, UNKNOWN)
# the columns that causes are told from
RESTS_ON = [
    *TASK,
    "series",
    "subject",
    "control",
    "correct",
    "context_length",
    "top_mass_answer",
    "haystack_nll",
    "answer_ranks",
    "out_of_reach",
]


@dataclass(frozen=True)
class Thresholds:
    """Where the causes part.

    attended: mass of the top head on the answer, in the row that predicts the first wrong token, from which the model
    counts as looking there (0 to 1). blow_up: nats by which the haystack's nll must lie above its mean at the
    shortest length for the positions to count as blown up. Raises UserError for values out of range.
    """

    attended: float = 0.5
    blow_up: float = 1.0

    def __post_init__(self) -> None:
        if any(
            isinstance(value, bool) or not isinstance(value, int | float) for value in (self.attended, self.blow_up)
        ):
            raise TypeError("thresholds are numbers")
        if not 0 <= self.attended <= 1:
            raise UserError(f"attended {self.attended}: allowed are 0 to 1, a share of attention")
        if not (np.isfinite(self.blow_up) and self.blow_up > 0):
            raise UserError(f"blow up {self.blow_up}: allowed are numbers above 0, nats a token")


@on_prompts
def with_causes(rows: pd.DataFrame, thresholds: Thresholds | None = None) -> pd.DataFrame:
    """Return the grid's scored prompts with column `cause`, one of CAUSES, and what it rests on: mass_there, haystack_rise.

    found: right in every token. Else out of reach: the needle stands further back than the windows of all layers carry
    together (out_of_reach, where the rows tell it). Else position blow-up: the haystack's nll (haystack_rise nats above the
    mean at the shortest length, of the RoPE setting under which this model reads best) says that the model no longer reads.
    Else attended, wrong: in the row that predicts the first wrong token, some head has the mass (mass_there) on the answer;
    not attended: none has. unknown: rows without masses.
    """
    thresholds = thresholds or Thresholds()
    part = with_plan(where(rows, rows["control"].isna() & rows["correct"].notna()))
    for name in ("top_mass_answer", "haystack_nll", "answer_ranks"):
        if name not in part:
            part[name] = None
    nll = part["haystack_nll"].astype(float)
    by = [part[name] for name in (*TASK, "series")]
    read = part["context_length"].where(nll.notna())
    short = nll.where(read == read.groupby(by).transform("min")).groupby(by).transform("mean")
    # a setting under which even short prompts are unreadable has its model's own level
    level = short.groupby([part[name] for name in (*TASK, "subject")]).transform("min")
    part["haystack_rise"] = nll - level
    told = zip(part["top_mass_answer"].to_list(), part["answer_ranks"].to_list(), strict=True)
    part["mass_there"] = [mass_at(masses, ranks) for masses, ranks in told]
    part["cause"] = np.select(
        [
            part["correct"].astype(bool),
            part["out_of_reach"].fillna(False).astype(bool) if "out_of_reach" in part else np.zeros(len(part), bool),
            part["mass_there"].isna(),
            part["haystack_rise"] >= thresholds.blow_up,
            part["mass_there"] >= thresholds.attended,
        ],
        [FOUND, UNREACHED, UNKNOWN, BLOWN_UP, ATTENDED],
        FADED,
    )
    return part


def mass_at(masses: object, ranks: object) -> float:
    """Return the mass in the row of the first wrong token, of the last one where all are right."""
    if not (isinstance(masses, list) and isinstance(ranks, list) and masses):
        return float("nan")
    wrong = next((i for i, rank in enumerate(ranks) if rank), len(masses) - 1)
    mass = masses[wrong] if wrong < len(masses) else None
    return float("nan") if mass is None else float(mass)


def cause_counts(explained: pd.DataFrame, by: tuple[str, ...] = ("context_length",)) -> pd.DataFrame:
    """Return a line for each series and group of `by`: prompts, and how many of them have each of CAUSES (rows: with_causes).

    Series stand as they come, groups of each in their own order: prompts of several runs come in any.
    """
    keys = [*TASK, "series", *by]
    counts = explained.groupby([*keys, "cause"], sort=False).size().unstack("cause", fill_value=0)
    counts = counts.reindex(columns=list(CAUSES), fill_value=0)
    counts = counts.assign(prompts=counts.sum(axis=1)).reset_index().rename_axis(columns=None)
    place = {name: number for number, name in enumerate(dict.fromkeys(explained["series"]))}
    order = counts.assign(series=counts["series"].map(place)).sort_values([*TASK, "series", *by], kind="stable").index
    return counts.loc[order].reset_index(drop=True)
