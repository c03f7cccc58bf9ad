"""Does the needed scale foretell what works without training, ln n or a constant? python benchmarks/foretold.py MODEL... [--output-path D]

For each softmax model, at 1 to 16 times its training length: the power of ln n with which its needed scale grows (6 trials, 3
depths). Then the model reads other prompts (8 trials, 3 depths) as trained, with s ln n and with a constant, s and constant fitted
to the needed scale alike, and with log-n. Last: the rank correlation over models (Kendall's tau, its exact p) of the power with how
much more s ln n finds than the constant, and how much likelier it makes the answers. All of it is stored, and goes on.
"""

import argparse
import logging
import math
from pathlib import Path

import pandas as pd
from scipy.stats import kendalltau

from ssmax_eval import statistics
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes import PROBES
from ssmax_eval.probes.by_model import training_length
from ssmax_eval.probes.needed_scale.options import NeededScaleOptions
from ssmax_eval.results import tables
from ssmax_eval.run import run_probes
from ssmax_eval.setting import Setting
from ssmax_eval.studies.advise import AS_TRAINED
from ssmax_eval.studies.asked import Asked

SEED = 2000
TIMES = (1, 2, 4, 8, 16)
NAMES = ("as trained", "a constant", "s ln n", "log-n")


def foretold(model: str, options: RunOptions) -> dict[str, float]:
    """Return the power of a model's needed scale, the fitted constant and s, and what each setting finds beyond the training length."""
    length = training_length(model)
    if length is None:
        raise SystemExit(f"{model}: its training length is not known")
    lengths = tuple(times * length for times in TIMES)
    asked = Asked(model, lengths)
    place = {"context_lengths": lengths, "depth_percents": (0.0, 50.0, 100.0), "task": asked.own_task}
    probe = PROBES["needed-scale"].make(asked.models, NeededScaleOptions(**place, trials=6))
    runs = run_probes([probe], asked.models, [AS_TRAINED], options)
    if (trained := runs[0].record()["attention"]["attention"]) != "softmax":
        raise SystemExit(f"{model}: its attention is {trained}; give models with softmax")
    found = statistics.best_factors(statistics.with_series(tables(runs)))
    power = statistics.scale_growth(found).iloc[0]
    laws = statistics.scale_laws(found).set_index("law")
    constant, s = float(laws.loc["a", "a"]), float(laws.loc["s ln n", "s"])
    settings = [
        AS_TRAINED,
        Setting.of(f"constant-n:s={constant / math.log(length):.4g}"),
        Setting.of(f"ssmax:s={s:.4g}"),
        Setting.of("log-n"),
    ]
    grid = asked.grid(1 / 2, SEED, 3)
    judged = run_probes([PROBES["needle"].make(asked.models, grid)], asked.models, settings, options)
    names = {run.run_id: name for name, run in zip(NAMES, judged, strict=True)}
    rows = tables(judged)
    rows = rows.assign(series=rows["run_id"].map(names))[rows["context_length"] > length]
    mean = rows.groupby("series")[["correct", "answer_nll"]].mean()
    return {
        "power": power["power"], "low": power["low"], "high": power["high"], "constant": constant, "s": s,
        **{name: mean.loc[name, "correct"] for name in NAMES},
        "more found": mean.loc["s ln n", "correct"] - mean.loc["a constant", "correct"],
        "nats less": mean.loc["a constant", "answer_nll"] - mean.loc["s ln n", "answer_nll"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--output-path", type=Path, default=Path("results"))
    given = parser.parse_args()
    logging.getLogger("ssmax_eval").setLevel(logging.ERROR)
    options = RunOptions(device="cpu", dtype="float32", output_path=given.output_path)
    lines = {}
    for model in given.models:
        lines[model] = foretold(model, options)
        print(model, {name: round(value, 2) for name, value in lines[model].items()}, flush=True)
    table = pd.DataFrame(lines).T.sort_values("power")
    print(table.round(2).to_string())
    for name in ("more found", "nats less"):
        tau, p = kendalltau(table["power"], table[name])
        print(
            f"the power and {name} by s ln n than by the constant: Kendall's tau {tau:+.2f}, p {p:.3f}, {len(table)} models"
        )


if __name__ == "__main__":
    main()
