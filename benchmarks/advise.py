"""Is advice as good as trying everything? python benchmarks/advise.py MODEL... [--seed N] [--output-path DIR]

For each model: `ssmax-eval advise`, then every setting of its list on prompts that advice never saw: another seed, --listed trials at
each depth that advice is asked about, as some settings lose the middle and some the ends. Printed: what advice says at each length,
the best of the list there and how far advice is below it, and the tokens of choosing and of the list as advice would read
it (--trials at each depth). What advice says is the model as trained where no setting is shown to help. All of it is stored, and goes
on. --seed, a multiple of 2,000: other prompts throughout; what was thought of with some in sight is judged on others.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ssmax_eval import statistics
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes import PROBES
from ssmax_eval.results import tables
from ssmax_eval.run import run_probes
from ssmax_eval.setting import Setting
from ssmax_eval.studies.advice import sentences
from ssmax_eval.studies.advise import CANDIDATES, advise
from ssmax_eval.studies.asked import Asked
from ssmax_eval.studies.held_out import advised

# the list that a user would try by hand
LIST = [each for each in CANDIDATES if str(each) != "log-n"]
SEED = 1000


def measured(asked: Asked, listed: int, settings: list[Setting], options: RunOptions) -> pd.DataFrame:
    """Return accuracy by length, a column for each setting, on so many trials of another seed."""
    grid = replace(asked.grid(1, SEED), trials=listed)
    runs = run_probes([PROBES["needle"].make(asked.models, grid)], asked.models, settings, options)
    names = {run.run_id: str(setting) for run, setting in zip(runs, settings, strict=True)}
    rows = tables(runs)
    found = statistics.lengths(rows.assign(series=rows["run_id"].map(names)))
    return found.pivot(index="context_length", columns="series", values="accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--context-lengths", default="")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--listed", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output-path", type=Path, default=Path("results"))
    given = parser.parse_args()
    if given.seed % (2 * SEED):  # a few seeds up to SEED above it are used
        parser.error(f"--seed {given.seed}: allowed are multiples of {2 * SEED:,}, so that no prompt is another seed's")
    logging.getLogger("ssmax_eval").setLevel(logging.ERROR)
    options = RunOptions(device=given.device, dtype=given.dtype, output_path=given.output_path)
    lengths = tuple(int(each) for each in given.context_lengths.split(",") if each)
    for model in given.models:
        asked = Asked(model, lengths, trials=given.trials, seed=given.seed)
        advice = advise(asked, options)
        taken = {length: advised(advice, length) for length in asked.context_lengths}
        settings = [each for each in LIST if each not in advice.refused]
        table = measured(asked, given.listed, [*dict.fromkeys([*settings, *taken.values()])], options)
        best = table[[str(each) for each in settings]].max(axis=1)
        found = pd.Series({length: table.loc[length, str(setting)] for length, setting in taken.items()})
        short = best - found
        tokens = advice.tokens
        share = (tokens["choosing"] + tokens["checking"]) / (
            tokens["the whole list"] * len(settings) / len(advice.series)
        )
        told = ", ".join(f"{setting} at {length:,}" for length, setting in taken.items())
        print(f"{model}: advice {told}; {share:.0%} of the list's tokens", flush=True)
        print(*sentences(advice), advice.price.round(3).to_string(index=False), sep="\n", flush=True)
        race = advice.race.pivot(index="context_length", columns="series", values=["right", "prompts"])
        print(race.to_string(), flush=True)
        print(table.assign(**{"best of the list": best, "below it": short}).round(2).to_string(), flush=True)
        print(f"  most below the best of the list: {short.max():+.2f}; mean over lengths {found.mean():.2f}, the list's best "
              f"single setting {table[[str(each) for each in settings]].mean().max():.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
