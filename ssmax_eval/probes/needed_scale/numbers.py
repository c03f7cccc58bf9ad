"""What the Python function of the needed scale returns."""

import pandas as pd

from ...statistics import needed_scale, with_series


def of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the best factor of each series, context length and thing that is scaled."""
    return needed_scale(with_series(rows))
