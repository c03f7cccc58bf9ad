"""What is left of each series' ceiling, the score of the needle alone, by length: in the terminal and on the page."""

import math
from typing import Any

import pandas as pd

from ... import statistics
from ...report.section import Table


def ceiling_table(heading: str, ceilings: pd.DataFrame) -> Table:
    """Return a line for each series of a task: its ceiling, the share of it at each length, the longest that holds.

    ceilings: statistics.ceilings.
    """
    lengths = sorted(ceilings["context_length"].unique())
    lines = []
    for name, of in ceilings.groupby("series", sort=False):
        at = {line["context_length"]: line for line in of.to_dict("records")}
        holds = [length for length, line in at.items() if line["holds"]]
        cells = [share_text(at.get(length)) for length in lengths]
        lines.append([str(name), f"{of['ceiling'].iloc[0]:.2f}", *cells, f"{max(holds):,}" if holds else "none"])
    columns = ["series", "ceiling", *(f"{n:,}" for n in lengths), f"longest with {statistics.SHARE:.0%}"]
    return Table(f"share of the ceiling (the needle alone), by length: {heading}", columns, lines)


def share_text(line: dict[str, Any] | None) -> str:
    """Write a share with its interval, if there is one."""
    if line is None:
        return ""
    between = "" if math.isnan(line["low"]) else f" ({line['low']:.2f} to {line['high']:.2f})"
    return f"{line['share']:.2f}{between}"
