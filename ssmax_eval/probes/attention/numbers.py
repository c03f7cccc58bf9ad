"""What the Python function of the attention probe returns."""

import pandas as pd

from ...statistics import heads, with_series


def of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each prompt, layer and head of rows with attention masses."""
    return heads(with_series(rows))
