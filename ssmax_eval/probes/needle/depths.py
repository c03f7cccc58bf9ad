"""Where needles stand that are not where the axis says: asked 25, placed 3 to 9."""

import pandas as pd

from ...data.needles import FAR_OFF
from ...statistics.series import of_grid

CELL = ["series", "context_length", "depth_percent"]


def with_placed(cells: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the cells (statistics.cells) with `placed`: the depths at which a cell's needles stand, None where all are near its own."""
    grid = of_grid(rows, [*CELL, "realised_depth_percent"])
    realised = grid["realised_depth_percent"].astype(float)
    far = grid.assign(realised=realised, off=(realised - grid["depth_percent"].astype(float)).abs())
    found = far.groupby(CELL)[["realised", "off"]].agg({"realised": ["min", "max"], "off": "max"})
    said = {
        key: span(low, high)
        for key, (low, high, off) in zip(found.index, found.to_numpy(), strict=True)
        if off > FAR_OFF
    }
    keys = zip(*(cells[name] for name in CELL), strict=True)
    return cells.assign(placed=pd.Series([said.get(key) for key in keys], index=cells.index, dtype=object))


def span(low: float, high: float) -> str:
    """Write a span of depths in whole percents."""
    return f"at {low:.0f}%" if round(low) == round(high) else f"at {low:.0f}–{high:.0f}%"
