"""The page's part on RoPE theta as an axis, and on the grid in which each cell has its best."""

from typing import Any

import pandas as pd

from .. import statistics
from ..statistics.grids import COUNTED
from ..statistics.series import PROMPT, told
from ..verdict import verdict
from . import figures
from .context import Context


def section(number: int, heading: str, rows: pd.DataFrame, context: Context) -> dict[str, Any] | None:
    """Return the panel of theta factors and the grid in which each cell has its best; None where theta is no axis."""
    table = statistics.theta_lengths(rows)
    if table.empty:
        return None
    rows = told(
        rows, [*PROMPT, *COUNTED, "subject", "attention", "attention_swapped", "rope", "rope_theta_factor", "run_id"]
    )
    best = statistics.best_theta(rows)
    cells, means = statistics.cells(best), statistics.lengths(best)
    lengths = sorted(table["context_length"].unique())
    subjects = []
    for name, part in table.groupby("subject", sort=False):
        accuracy = part.pivot(index="rope_theta_factor", columns="context_length", values="accuracy").reindex(
            columns=lengths
        )
        series = f"{name}, {statistics.BEST}"
        own = means[means["series"] == series].set_index("context_length")["accuracy"].reindex(lengths)
        subjects.append(
            {
                "subject": name,
                "lines": [
                    {"factor": factor, "values": [None if pd.isna(v) else float(v) for v in line]}
                    for factor, line in zip(accuracy.index, accuracy.to_numpy(), strict=True)
                ],
                "best": [None if pd.isna(v) else float(v) for v in own],
            }
        )
    # who was run at one theta only takes part as it is
    fair = pd.concat([best, rows[rows["control"].isna() & ~rows["subject"].isin(table["subject"])]])
    subject = rows.loc[rows["series"] == context.baseline_of(rows), "subject"].iloc[0]
    baseline = next(name for name, part in fair.groupby("series", sort=False) if part["subject"].iloc[0] == subject)
    said = verdict(fair, str(baseline), statistics.effective_lengths(fair), context.train_lengths(fair))
    return {
        "heading": heading,
        "verdict": said if len(said) > 1 else [],
        "figure": context.drawn(figures.theta_figure(table), f"theta-{number:02}"),
        "fair": context.drawn(figures.grids(cells, {}), f"theta-best-{number:02}"),
        "lengths": [int(length) for length in lengths],
        "subjects": subjects,
    }
