"""The page's prompts: every answer, its tokens and where attention went, packed so that ten models' fit on a page.

Where they would take more than BUDGET, the page has those of each cell that tell most, and the rows files the rest.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from .... import statistics
from ....report import figures
from ....report.context import Context
from ....report.section import Section, by_task
from ....statistics.causes import RESTS_ON
from ....statistics.clusters import numbered
from ....statistics.series import of_grid, told

BUDGET = 8_000_000  # bytes of prompts and answers on a page
BLOCK = 1000  # prompts packed before their bytes are counted
RIGHT, FIRST, WRONG, FAILED = range(4)
PROMPT = ["context_length", "depth_percent", "trial", "prompt_sha256"]
SHARED = [*PROMPT, "realised_depth_percent", "needle", "question", "expected"]
ANSWER = [
    "correct", "first_correct", "expected", "predicted", "expected_tokens", "predicted_tokens", "answer_nll", "answer_ranks",
    "error", "top_mass_answer", "mass_answer", "mass_needle", "mass_first", "mass_question", "maximum_at", "row_sum", "needle_start",
]  # fmt: skip


class Tasks:
    """The payloads of all tasks, made when the page first asks for them."""

    def __init__(self, rows: pd.DataFrame, context: Context) -> None:
        self.rows, self.context = rows, context

    @cached_property
    def fitted(self) -> list[dict[str, Any]]:
        of = self.context
        return fitted([payload(heading, part, of.thresholds, of.details) for _, heading, part in by_task(self.rows)])


class Prompts(Section[Tasks]):
    """Every answer, for the page's script."""

    place = 80

    def numbers(self, rows: pd.DataFrame, context: Context) -> list[Tasks]:
        return [Tasks(rows, context)]

    def page(self, found: Sequence[Tasks], context: Context) -> Markup:
        return self.rendered(context, prompts=found[0].fitted)

    def data(self, found: Sequence[Tasks]) -> dict[str, Any]:
        return {"causes": statistics.CAUSES, "tasks": found[0].fitted}


SECTION = Prompts()


def payload(
    heading: str,
    rows: pd.DataFrame,
    thresholds: statistics.Thresholds,
    details: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows,
) -> dict[str, Any]:
    """Return one task's prompts and every series' answers to them, as many as BUDGET has room for, JSON values only.

    prompts: [length, depth, trial, realised depth, needle, question, expected, its tokens or 0, hash]. series: name, key and
    answers, one a prompt: 0 where it was not asked, else [state, nll, predicted, ranks, tokens, cause, attention, error],
    zeros at its end left out. Predicted, ranks, tokens: 0 is as expected, null is none. cause: its number in CAUSES, from 1,
    0 for none. attention: 0 for none, or the percents on the answer for each token, then layer, head, and percent on the
    answer, on the rest of its sentence, on the first token and on the question of the head with the most on the answer, and
    the position it looks at most. asked: how many prompts the task has. For `fitted`, one a prompt: places, where it stands
    among those that tell most, from 0; bytes, what it takes.

    details: gives rows the columns that only a page of them needs, where they lack them.
    """
    grid = of_grid(rows, ["series", "run_id", "sample", *SHARED, *ANSWER])
    number = grid.groupby(PROMPT, dropna=False).ngroup()  # of the prompt, which all its series share
    causes = pd.Series(dtype=object)
    if "top_mass_answer" in rows:
        explained = statistics.with_causes(told(rows, RESTS_ON), thresholds)
        causes = explained.loc[explained["mass_there"].notna(), "cause"]
    names = grid["series"].unique().tolist()
    found = telling(grid, number)
    kept: dict[int, dict[str, Any]] = {}  # by the prompt's number
    size = 0
    start, count = 0, BLOCK
    while start < len(found) and size <= BUDGET:
        block = found[start : start + count]
        chosen = grid[number.isin(block)]
        chosen = chosen if "expected" in chosen else details(chosen)
        lines = packed(chosen, number[chosen.index], causes, names)
        for place, each in enumerate(block.tolist(), start):
            taken = len(json.dumps(lines[each], ensure_ascii=False, separators=(",", ":")).encode())
            kept[each] = {"line": lines[each], "place": place, "bytes": taken}
            size += taken
        start += count
        count = BLOCK + int(start * max(0, BUDGET - size) / size)  # what there is still room for, and some
    ours = [kept[each] for each in sorted(kept)]
    return {
        "heading": heading,
        "prompts": [each["line"][0] for each in ours],
        "series": [
            {"name": name, "key": figures.key_of(str(name)), "answers": [each["line"][1][i] for each in ours]}
            for i, name in enumerate(names)
        ],
        "asked": len(found),
        "places": [each["place"] for each in ours],
        "bytes": [each["bytes"] for each in ours],
    }


def fitted(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the payloads of a page's tasks cut to BUDGET together: what needs less than an equal part of it stays whole."""
    left, room = BUDGET, {}
    by_size = sorted(range(len(tasks)), key=lambda i: sum(tasks[i]["bytes"]))
    for count, i in zip(range(len(tasks), 0, -1), by_size, strict=True):
        room[i] = min(sum(tasks[i]["bytes"]), left // count)
        left -= room[i]
    return [cut(task, room[i]) for i, task in enumerate(tasks)]


def cut(task: dict[str, Any], room: int) -> dict[str, Any]:
    """Return a payload with as many of its prompts as so many bytes hold, those that tell most, and without its places and bytes."""
    of_place = np.argsort(task["places"])
    fits = np.cumsum(np.array(task["bytes"], dtype=np.int64)[of_place]) <= room
    kept = np.sort(of_place[fits]).tolist()
    series = [{**each, "answers": [each["answers"][i] for i in kept]} for each in task["series"]]
    whole = {"prompts": [task["prompts"][i] for i in kept], "series": series}
    return {"heading": task["heading"], **whole, "asked": task["asked"]}


def telling(grid: pd.DataFrame, number: "pd.Series[int]") -> NDArray[np.int64]:
    """Return the prompts' numbers, those first that a page keeps first: evenly over the cells, and of each cell those that tell most.

    First those on which series differ, then those that some have not found, then the rest, by trial. number: of each row's
    prompt, from 0, sorted by PROMPT.
    """
    of_row = number.to_numpy()
    asked = np.bincount(of_row)
    scored, right = (
        np.bincount(of_row, weights=of.to_numpy(dtype=bool))
        for of in (grid["correct"].notna(), grid["correct"].fillna(False))
    )
    interest = np.select([(right > 0) & (right < scored), right < asked], [0, 1], 2)
    first = grid.iloc[np.unique(of_row, return_index=True)[1]]
    cell = numbered(first["context_length"], first["depth_percent"]).to_numpy()
    by_cell = np.lexsort((interest, cell))
    starts = np.searchsorted(cell[by_cell], cell[by_cell])
    return by_cell[np.argsort(np.arange(len(by_cell)) - starts, kind="stable")]


def packed(
    grid: pd.DataFrame, number: "pd.Series[int]", causes: "pd.Series[Any]", names: list[str]
) -> dict[int, tuple[list[Any], list[Any]]]:
    """Return, by its number, each prompt's line of `payload` and the answers of the series named."""
    tokens: dict[Any, list[str]] = {}
    if "expected_tokens" in grid:  # rows without a score lack them, and those of older runs
        known = grid[grid["expected_tokens"].map(lambda each: isinstance(each, list))]
        tokens = dict(zip(known["prompt_sha256"], known["expected_tokens"], strict=True))
    first = grid.iloc[np.unique(number, return_index=True)[1]]
    lines: dict[int, tuple[list[Any], list[Any]]] = {}
    for each, row in zip(np.unique(number).tolist(), present(first[SHARED]), strict=True):
        prompt = [
            int(row["context_length"]), row["depth_percent"], int(row["trial"]), short(row["realised_depth_percent"]),
            row["needle"], row["question"], row["expected"], tokens.get(row["prompt_sha256"], 0),
            str(row["prompt_sha256"])[:12],
        ]  # fmt: skip
        lines[each] = prompt, [0] * len(names)
    at = {name: i for i, name in enumerate(names)}
    rows = zip(number.tolist(), grid["series"], present(told(grid, ANSWER)), causes.reindex(grid.index), strict=True)
    for each, name, row, cause in rows:
        lines[each][1][at[name]] = answer(row, statistics.CAUSES.index(cause) + 1 if isinstance(cause, str) else 0)
    return lines


def present(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows with None for what is missing."""
    columns = {str(name): column.to_numpy(dtype=object, copy=True) for name, column in rows.items()}
    for name, values in columns.items():
        values[rows[name].isna().to_numpy()] = None
    lists = [values.tolist() for values in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


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
    return 0 if value is None or not math.isfinite(100 * value) else round(100 * value)


def short(value: Any, digits: int = 1) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)
