"""The page's part on training: the curves that the models' logs tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from . import figures
from .context import Context
from .section import Section


@dataclass(frozen=True)
class Trained:
    """The training logs of some models, one below the other, and by model the signs of what can go wrong, in words."""

    logs: pd.DataFrame
    signs: Mapping[str, Sequence[str]]


class Training(Section[Trained]):
    """The models' training curves and signs, where their run records know them, whatever probes the page is of."""

    place = 70

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Trained]:
        logs, signs = logs_of(rows, context), signs_of(rows, context)
        return [Trained(pd.concat(logs) if logs else pd.DataFrame(), signs)] if logs or signs else []

    def page(self, found: Sequence[Trained], context: Context) -> Markup:
        (each,) = found
        curves = None if each.logs.empty else context.drawn(figures.curves(each.logs), "training")
        return self.rendered(context, curves=curves, signs=each.signs)

    def summary(self, found: Sequence[Trained]) -> dict[str, Any]:
        signs = {name: told for each in found for name, told in each.signs.items()}
        return {"signs": signs} if signs else {}


SECTION = Training()


def signs_of(rows: pd.DataFrame, context: Context) -> dict[str, list[str]]:
    """Return what the signs of the models of rows say, as far as run records know any."""
    return {name: told["signs"] for name, told in trainings(rows, context).items() if told.get("signs")}


def logs_of(rows: pd.DataFrame, context: Context) -> list[pd.DataFrame]:
    """Return the training logs of the models of rows, as far as run records know any."""
    logs = {name: told["log"] for name, told in trainings(rows, context).items() if told.get("log")}
    tables = {name: pd.DataFrame(log).apply(pd.to_numeric, errors="coerce") for name, log in logs.items()}
    return [
        log.assign(model=name) for name, log in tables.items() if "tokens" in log and set(figures.PANELS) & set(log)
    ]


def trainings(rows: pd.DataFrame, context: Context) -> dict[str, dict[str, Any]]:
    """Return what run records tell of the trainings of the models of rows, by label; of other weights of one label, by theirs too."""
    shown = set(rows["model"].unique())
    # of a run that has not ended there is no record yet
    known = [record.get("model", {}) for record in context.records]
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for model in known:
        if model.get("training") and model.get("label") in shown:
            told.setdefault(model["label"], {})[str(model.get("fingerprint"))] = model["training"]
    return {
        label if len(trained) == 1 else f"{label} ({fingerprint})": training
        for label, trained in told.items()
        for fingerprint, training in trained.items()
    }
