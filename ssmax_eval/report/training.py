"""The page's part on training: the curves that the models' logs tell."""

from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from . import figures
from .context import Context
from .section import Section


class Training(Section[pd.DataFrame]):
    """The models' training curves, where their run records know them, whatever probes the page is of."""

    place = 70

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[pd.DataFrame]:
        return logs_of(rows, context)

    def page(self, found: Sequence[pd.DataFrame], context: Context) -> Markup:
        return self.rendered(context, curves=context.drawn(figures.curves(pd.concat(found)), "training"))


SECTION = Training()


def logs_of(rows: pd.DataFrame, context: Context) -> list[pd.DataFrame]:
    """Return the training logs of the models of rows, as far as run records know any."""
    known = [record.get("model", {}) for record in context.records]
    logs = {model["label"]: model["training"]["log"] for model in known if (model.get("training") or {}).get("log")}
    shown = set(rows["model"].unique())
    tables = {label: pd.DataFrame(log).apply(pd.to_numeric, errors="coerce") for label, log in logs.items()}
    return [
        log.assign(model=label)
        for label, log in tables.items()
        if label in shown and "tokens" in log and set(figures.PANELS) & set(log)
    ]
