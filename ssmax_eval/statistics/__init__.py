"""Statistics of grids, losses and attention: DataFrame in, DataFrame out."""

from .causes import CAUSES, FADED, Thresholds, cause_counts, with_causes
from .ceiling import ceilings
from .clusters import BY_TRIAL, CONFIDENCE, FEWEST
from .exact import POWER, paired_interval, smallest_difference
from .grids import cells, controls, lengths, wilson
from .heads import HEAD, fading, head_scores, heads, top_heads
from .kinds import of_documents, of_prompts
from .laws import LAWS, growth_told_twice, law_values, scale_growth, scale_laws
from .league import LEARNED, attention_standings, concordance, loss_standings, standings
from .losses import ITSELF, compare_key_loss, context_gain, key_loss, loss_by_position, mean_loss, same_tokens
from .needed import Needed, best_factors, needed_scale
from .paired import Beside, beside, compare
from .ranking import chosen, finds_as_many, price, ranked
from .reach import SHARE, compare_reach, effective_lengths
from .restored import restored, restored_causes
from .rope import at_best_theta, best_theta, theta_lengths
from .ruler import ruler_lengths, ruler_means, ruler_scores
from .seeds import compare_seeds, over_seeds
from .series import (
    CELL,
    JUDGED,
    PART,
    PROMPT,
    TASK,
    TEXT,
    default_baseline,
    task_name,
    tasks,
    where_of,
    with_series,
)

__all__ = [
    "BY_TRIAL",
    "CAUSES",
    "CELL",
    "CONFIDENCE",
    "FADED",
    "FEWEST",
    "HEAD",
    "ITSELF",
    "JUDGED",
    "LAWS",
    "LEARNED",
    "PART",
    "POWER",
    "PROMPT",
    "SHARE",
    "TASK",
    "TEXT",
    "Beside",
    "Needed",
    "Thresholds",
    "at_best_theta",
    "attention_standings",
    "beside",
    "best_factors",
    "best_theta",
    "cause_counts",
    "ceilings",
    "cells",
    "chosen",
    "compare",
    "compare_key_loss",
    "compare_reach",
    "compare_seeds",
    "concordance",
    "context_gain",
    "controls",
    "default_baseline",
    "effective_lengths",
    "fading",
    "finds_as_many",
    "growth_told_twice",
    "head_scores",
    "heads",
    "key_loss",
    "law_values",
    "lengths",
    "loss_by_position",
    "loss_standings",
    "mean_loss",
    "needed_scale",
    "of_documents",
    "of_prompts",
    "over_seeds",
    "paired_interval",
    "price",
    "ranked",
    "restored",
    "restored_causes",
    "ruler_lengths",
    "ruler_means",
    "ruler_scores",
    "same_tokens",
    "scale_growth",
    "scale_laws",
    "smallest_difference",
    "standings",
    "task_name",
    "tasks",
    "theta_lengths",
    "top_heads",
    "where_of",
    "wilson",
    "with_causes",
    "with_series",
]  # fmt: skip
