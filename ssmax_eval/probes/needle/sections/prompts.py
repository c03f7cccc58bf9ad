"""The page's prompts: every answer, its tokens and where attention went, packed so that ten models' fit on a page."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, by_task

RIGHT, FIRST, WRONG, FAILED = range(4)
PROMPT = ["context_length", "depth_percent", "trial", "prompt_sha256"]


class Prompts(Section[dict[str, Any]]):
    """Every answer, for the page's script."""

    place = 80

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[dict[str, Any]]:
        return [payload(heading, part, context.thresholds) for _, heading, part in by_task(rows)]

    def page(self, found: Sequence[dict[str, Any]], context: Context) -> Markup:
        return self.rendered(context, prompts=found)

    def data(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"causes": statistics.CAUSES, "tasks": found}


SECTION = Prompts()


def payload(heading: str, rows: pd.DataFrame, thresholds: statistics.Thresholds) -> dict[str, Any]:
    """Return one task's prompts and every series' answers to them, JSON values only.

    prompts: [length, depth, trial, realised depth, needle, question, expected, its tokens or 0, hash]. series: name, key and
    answers, one a prompt: 0 where it was not asked, else [state, nll, predicted, ranks, tokens, cause, attention, error],
    zeros at its end left out. Predicted, ranks, tokens: 0 is as expected, null is none. cause: its number in CAUSES, from 1,
    0 for none. attention: 0 for none, or the percents on the answer for each token, then layer, head, and percent on the
    answer, on the rest of its sentence, on the first token and on the question of the head with the most on the answer, and
    the position it looks at most.
    """
    grid = rows[rows["control"].isna()]
    explained = statistics.with_causes(rows, thresholds)
    explained = explained.loc[explained["mass_there"].notna(), "cause"]
    # one line a prompt: what all its series share
    first = grid.drop_duplicates(PROMPT).sort_values(PROMPT)
    index = {key: i for i, key in enumerate(zip(*(first[name] for name in PROMPT), strict=True))}
    tokens: dict[Any, list[str]] = {}
    if "expected_tokens" in grid:  # rows without a score lack them, and those of older runs
        known = grid[grid["expected_tokens"].map(lambda each: isinstance(each, list))]
        tokens = dict(zip(known["prompt_sha256"], known["expected_tokens"], strict=True))
    prompts = [
        [
            int(row["context_length"]), row["depth_percent"], int(row["trial"]), short(row["realised_depth_percent"]),
            row["needle"], row["question"], row["expected"], tokens.get(row["prompt_sha256"], 0),
            str(row["prompt_sha256"])[:12],
        ]
        for row in present(first).to_dict("records")
    ]  # fmt: skip
    series = []
    for name, part in grid.groupby("series", sort=False):
        answers: list[Any] = [0] * len(prompts)
        causes = explained.reindex(part.index)
        keys = zip(*(part[column] for column in PROMPT), strict=True)
        for key, row, cause in zip(keys, present(part).to_dict("records"), causes, strict=True):
            answers[index[key]] = answer(row, statistics.CAUSES.index(cause) + 1 if isinstance(cause, str) else 0)
        series.append({"name": name, "key": figures.key_of(str(name)), "answers": answers})
    return {"heading": heading, "prompts": prompts, "series": series}


def present(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with None for what is missing."""
    rows = rows.astype(object)
    return rows.where(rows.notna(), None)


def answer(row: dict[str, Any], cause: int) -> list[Any]:
    """Pack one series' answer to one prompt."""
    correct, ranks, tokens = row["correct"], row.get("answer_ranks"), row.get("predicted_tokens")
    state = FAILED if correct is None else RIGHT if correct else FIRST if row["first_correct"] else WRONG
    expected = state == RIGHT and row["predicted"] == row["expected"]
    packed = [
        state,
        short(row.get("answer_nll"), 3),
        0 if expected else row["predicted"],
        0 if expected and not any(ranks or ()) else ranks,
        0 if expected and tokens == row.get("expected_tokens") else tokens,
        cause,
        where(row),
        row.get("error") or 0,
    ]
    while type(packed[-1]) is int and packed[-1] == 0 and len(packed) > 2:
        packed.pop()
    return packed


def where(row: dict[str, Any]) -> Any:
    """Pack where attention went: 0 for a row without masses."""
    by_token = row.get("top_mass_answer")
    told = (row.get(name) for name in ("mass_answer", "mass_needle", "mass_first", "mass_question", "maximum_at"))
    if not isinstance(by_token, list) or not all(isinstance(each, list) for each in told):
        return 0
    # layers can have unlike numbers of heads
    masses = [
        (mass, i, j) for i, layer in enumerate(row["mass_answer"]) for j, mass in enumerate(layer) if mass is not None
    ]
    masses = [each for each in masses if math.isfinite(each[0])]
    if not masses:
        return 0
    _, layer, head = max(masses, key=lambda each: each[0])
    values = [row[name][layer][head] for name in ("mass_answer", "mass_needle", "mass_first", "mass_question")]
    on = [percent(value) for value in values]
    on[1] = max(0, on[1] - on[0])
    on[2] = 0 if row.get("needle_start") == 0 else on[2]  # the first token is the needle's
    packed = [[percent(value) for value in by_token], layer, head, *on, row["maximum_at"][layer][head]]
    sums = row.get("row_sum")  # of rows that do not sum to 1
    return [*packed, percent(sums[layer][head])] if isinstance(sums, list) else packed


def percent(value: float | None) -> int:
    return 0 if value is None or math.isnan(value) else round(100 * value)


def short(value: Any, digits: int = 1) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)
