"""Statistics of grids and of losses: DataFrame in, DataFrame out."""

import numpy as np
import pandas as pd
from scipy import stats

TASK = ["task", "value", "needles", "haystack"]
CELL = [*TASK, "series", "context_length", "depth_percent"]
PROMPT = [*TASK, "series", "control", "context_length", "depth_percent", "prompt_sha256"]
TEXT = ["text", "text_sha256", "context_length", "window"]
PART = [*TEXT, "series", "document_sha256", "measure", "position_start", "position_end"]
CONFIDENCE = 0.95


def with_series(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a probe with a `series` column that names what was probed, each prompt or position bin once in its series.

    The model's name, its law if any is not softmax, its RoPE setting if changed; dtype, scoring and weights only where
    they differ between rows of one name, so that what is not the same is never averaged.
    """
    law = rows["attention"] + rows["attention_swapped"].map({True: " swapped in", False: ""})
    series = rows["model"] + (", " + law if (rows["attention"] != "softmax").any() else "")
    series += rows["rope"].where(rows["rope"] == "as trained", ", " + rows["rope"]).replace("as trained", "")
    for column in ("dtype", "scoring", "fingerprint"):
        if column not in rows:
            continue
        differs = rows.groupby(series)[column].transform("nunique") > 1
        series = series.where(~differs, series + ", " + rows[column])
    rows = rows.assign(series=series).reset_index(drop=True)
    # of what was run twice, a row with a score before one without, and one that also has attention masses
    has_mass = rows["mass_answer"].notna() if "mass_answer" in rows else rows["error"].isna()
    rows = rows.iloc[np.lexsort((has_mass, rows["error"].isna()))]
    kinds = ((of_prompts(rows), PROMPT), (of_documents(rows), PART))
    once = [part.drop_duplicates(key, keep="last") for part, key in kinds if not part.empty]
    return pd.concat(once).sort_index() if once else rows


def of_prompts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are needle prompts, with attention masses or without."""
    return rows[rows["prompt_sha256"].notna()] if "prompt_sha256" in rows else rows.iloc[:0]


def of_documents(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are parts of a document's loss."""
    return rows[rows["measure"].notna()] if "measure" in rows else rows.iloc[:0]


def task_name(rows: pd.DataFrame) -> str:
    """Name the task of rows that share it, for example `multikey, 4 uuids, haystack text`."""
    task, value, needles, haystack = rows.iloc[0][TASK]
    what = {"single": value, "digits": "", "recall": ""}.get(task, f"{needles} {value}s")
    return ", ".join(filter(None, [task, what, f"haystack {haystack}"]))


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and cell of the grid: trials, scored, failed, accuracy and first_accuracy (0 to 1, NaN if none scored).

    Controls are left out; a sample without a score counts as failed and not as wrong.
    """
    grid = rows[rows["control"].isna()]
    return _accuracy(grid, CELL)


def lengths(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and context length over all depths, with the columns of `cells`."""
    return _accuracy(rows[rows["control"].isna()], [name for name in CELL if name != "depth_percent"])


def controls(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series, control and context length, with the columns of `cells`; needle-only pools its lengths."""
    rows = rows[rows["control"].notna()]
    rows = rows.assign(context_length=rows["context_length"].where(rows["control"] != "needle-only"))
    return _accuracy(rows, [*TASK, "series", "control", "context_length"])


def _accuracy(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    columns = [*by, "trials", "scored", "failed", "accuracy", "first_accuracy"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    values = rows.assign(
        scored=rows["correct"].notna(),
        correct=rows["correct"].astype("Float64"),
        first=rows["first_correct"].astype("Float64"),
    )
    grouped = values.groupby(by, sort=False, dropna=False)
    out = grouped.agg(
        trials=("trial", "size"),
        scored=("scored", "sum"),
        accuracy=("correct", "mean"),
        first_accuracy=("first", "mean"),
    ).reset_index()
    out["failed"] = out["trials"] - out["scored"]
    out[["accuracy", "first_accuracy"]] = out[["accuracy", "first_accuracy"]].astype("float64")
    return out[columns]


def loss_by_position(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and position bin: loss (nats a token, all nats over all tokens), its interval, documents, failed.

    low and high bound the 95% interval of the mean over documents (Student's t): tokens of one document are not independent.
    """
    part = rows[rows["measure"] == "position"]
    return _over_documents(part, part["nll_sum"], [*TEXT, "series", "position_start", "position_end"], "loss")


def context_gain(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series and length: the loss of the last `window` tokens with all before them minus with themselves alone.

    context_gain in nats a token, below 0 where the far context helps; interval and counts as in loss_by_position.
    """
    part = rows[rows["measure"] == "gain"]
    return _over_documents(
        part, part["nll_sum"] - part["nll_sum_near"], [*TEXT, "series", "position_end"], "context_gain"
    )


def _over_documents(rows: pd.DataFrame, nats: pd.Series, by: list[str], name: str) -> pd.DataFrame:
    columns = [*by, name, "low", "high", "documents", "failed"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    whole = {name: "int64" for name in by if name in ("context_length", "window", "position_start", "position_end")}
    rows = rows.astype(whole)  # beside rows of another probe, which lack them, they became floats
    # documents of a bin have equally many tokens, so the mean of their losses is all nats over all tokens
    values = rows.assign(value=nats.astype("float64") / rows["tokens"])
    grouped = values.groupby(by, sort=False)["value"]
    out = grouped.agg(["mean", "count", "size", "sem"]).reset_index()
    half = out["sem"] * stats.t.ppf((1 + CONFIDENCE) / 2, (out["count"] - 1).clip(lower=1))
    out = out.assign(low=out["mean"] - half, high=out["mean"] + half, failed=out["size"] - out["count"])
    return out.rename(columns={"mean": name, "count": "documents"})[columns]


HEAD = ("mass_answer", "mass_needle", "log_odds", "entropy", "maximum", "mass_answer_mean", "mass_next")


def heads(rows: pd.DataFrame) -> pd.DataFrame:
    """Return attention rows as one line per prompt, layer and head, from needle rows with attention masses (attention_mass.py).

    layer and head count from 0; n is the number of keys that the layer's row which predicts the answer's first token sees.
    Prompts without a needle or without a score are left out.
    """
    kept = [*TASK, "series", "context_length", "depth_percent", "trial", "prompt_sha256", "correct", "first_correct"]
    columns = [*kept, "layer", "head", "n", *HEAD]
    if "mass_answer" not in rows:
        return pd.DataFrame(columns=columns)
    part = rows[
        rows["mass_answer"].map(lambda mass: isinstance(mass, list)) & rows["control"].isna() & rows["error"].isna()
    ]
    if part.empty:
        return pd.DataFrame(columns=columns)
    blank = [np.full(np.shape(mass), np.nan) for mass in part["mass_answer"]]
    values = {
        name: [
            np.asarray(mass, dtype=float) if isinstance(mass, list) else none
            for mass, none in zip(part[name], blank, strict=True)
        ]
        for name in HEAD
    }
    shapes = [mass.shape for mass in values["mass_answer"]]
    lines = np.repeat(np.arange(len(part)), [layers * per_layer for layers, per_layer in shapes])
    index = [np.indices(shape).reshape(2, -1) for shape in shapes]
    layer, head = np.concatenate(index, axis=1)
    seen = np.concatenate([np.repeat(each, shape[1]) for each, shape in zip(part["visible_keys"], shapes, strict=True)])
    out = part[kept].iloc[lines].reset_index(drop=True).assign(layer=layer, head=head, n=seen)
    return out.assign(**{name: np.concatenate([mass.ravel() for mass in values[name]]) for name in HEAD})[columns]


def head_scores(by_head: pd.DataFrame) -> pd.DataFrame:
    """Return one line per series, length, layer and head: mean mass on the answer and on the needle, and prompts."""
    by = [*TASK, "series", "context_length", "layer", "head"]
    grouped = by_head.groupby(by, sort=False)
    return grouped.agg(
        mass_answer=("mass_answer", "mean"), mass_needle=("mass_needle", "mean"), prompts=("n", "size")
    ).reset_index()


def top_heads(by_head: pd.DataFrame) -> pd.DataFrame:
    """Return the head with the most mass on the answer for each prompt (the paper's Figure 8), and the verdict: right, first, wrong."""
    prompt = [*TASK, "series", "context_length", "depth_percent", "trial", "prompt_sha256"]
    best = by_head.loc[by_head.groupby(prompt, sort=False)["mass_answer"].idxmax()].reset_index(drop=True)
    right, first = best["correct"].fillna(False), best["first_correct"].fillna(False)
    return best.assign(verdict=np.select([right, first], ["right", "first token"], "wrong"))


def fading(by_head: pd.DataFrame) -> pd.DataFrame:
    """Return the fit ln(mass / (1 - mass)) = a + b ln n of each head over its prompts, by least squares.

    One line per series, layer and head: a, b, and b's 95% interval low, high (errors that may differ with n, HC3). b is NaN
    where n does not vary or some prompt's needle is out of a layer's window, the interval where a length has one prompt.
    A softmax head whose scores do not depend on n has b = -1, a SSMax head s * lead - 1.
    """
    import statsmodels.api as sm  # seconds to import

    lines = []
    by = [*TASK, "series", "layer", "head"]
    for key, part in by_head.groupby(by, sort=False):
        line = dict(zip(by, key, strict=True)) | dict.fromkeys(("a", "b", "low", "high"), float("nan"))
        n, odds = part["n"].to_numpy(dtype=float), part["log_odds"].to_numpy(dtype=float)
        if len(np.unique(n)) > 1 and np.isfinite(odds).all():
            fit = sm.OLS(odds, sm.add_constant(np.log(n))).fit()
            line |= {"a": fit.params[0], "b": fit.params[1]}
            # a length with one prompt fits it exactly, and says nothing of its scatter
            if part["context_length"].value_counts().min() > 1:
                robust = fit.get_robustcov_results("HC3", use_t=True)
                line["low"], line["high"] = robust.conf_int(1 - CONFIDENCE)[1]
        lines.append(line | {"prompts": len(part)})
    return pd.DataFrame(lines, columns=[*by, "a", "b", "low", "high", "prompts"])
