"""Two models before and after fine-tuning, as lm-eval scored them, in one table: python benchmarks/finetune.py RUNS [TABLE.csv]

RUNS holds lm-eval's folders softmax-before, softmax-after, ssmax-before, ssmax-after (benchmarks/finetune.sh makes them). A line
for each two of them and context length: accuracy and its 95% interval, the difference on the same prompts, its interval and p (Holm).
"""

import sys
from pathlib import Path

import pandas as pd

import ssmax_eval
from ssmax_eval import statistics

# whose accuracy, and whose it is compared with
ASKED = (
    ("ssmax-before", "softmax-before"),
    ("ssmax-after", "softmax-after"),
    ("softmax-after", "softmax-before"),
    ("ssmax-after", "ssmax-before"),
)


def compared(runs: Path, one: str, other: str) -> pd.DataFrame:
    """Return one line a context length of two folders of lm-eval's."""
    rows = statistics.with_series(ssmax_eval.load_results(runs / one, runs / other))
    names = {folder: of_run(rows, runs / folder) for folder in (one, other)}
    each = statistics.lengths(rows).set_index(["series", "context_length"])
    lines = []
    for line in statistics.compare(rows, names[other], ("context_length",)).to_dict("records"):
        if line["series"] == names[one]:
            found, against = (each.loc[(names[folder], line["context_length"])] for folder in (one, other))
            lines.append(
                {
                    "model": one,
                    "against": other,
                    "context_length": line["context_length"],
                    "prompts": line["pairs"],
                    "accuracy": found["accuracy"],
                    "accuracy_low": found["low"],
                    "accuracy_high": found["high"],
                    "accuracy_against": against["accuracy"],
                    "against_low": against["low"],
                    "against_high": against["high"],
                    **{name: line[name] for name in ("difference", "low", "high", "p_holm")},
                }
            )
    return pd.DataFrame(lines)


def of_run(rows: pd.DataFrame, folder: Path) -> str:
    """Return the name of the series that a folder's rows are."""
    own = ssmax_eval.load_results(folder)["run_id"].iloc[0]
    return str(rows.loc[rows["run_id"] == own, "series"].iloc[0])


def main(runs: str, table: str = "finetune.csv") -> None:
    found = pd.concat([compared(Path(runs), *pair) for pair in ASKED], ignore_index=True).round(4)
    found.to_csv(table, index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
