"""Compare the verdicts of the same prompts in two stores, made on two machines or in two dtypes: python benchmarks/agreement.py STORE STORE

Pairs prompts by the model's weights, law, theta and the prompt's hash. Prints how many verdicts agree, and for each that does not
how far the answer led or trailed (margin, in logits) in either store: rounding turns only what is nearly a tie.
"""

import sys

import pandas as pd

from ssmax_eval.results import find_runs, load_results

SAME = [
    "fingerprint",
    "attention",
    "rope",
    "rope_theta",
    "rope_theta_factor",
    "scoring",
    "control",
    "prompt_sha256",
    "sample",
]


def read(store: str) -> pd.DataFrame:
    runs = find_runs(store)
    rows = load_results(*runs)
    device = {run.run_id: run.record().get("environment", {}).get("device", "unfinished run") for run in runs}
    rows["device"] = rows["run_id"].map(device)
    return rows[rows["correct"].notna()].drop_duplicates(SAME)


def main(one: str, two: str) -> None:
    both = (
        read(one)
        .merge(read(two), on=SAME, suffixes=("_1", "_2"))
        .rename(columns={"context_length_1": "context_length"})
    )
    if both.empty:
        sys.exit("no prompt is in both stores")
    where = [f"{both[f'device_{i}'][0]}, {both[f'dtype_{i}'][0]}" for i in (1, 2)]
    both["agree"] = both["correct_1"].astype(bool) == both["correct_2"].astype(bool)
    nll = (both["answer_nll_1"] - both["answer_nll_2"]).abs()
    print(
        f"{where[0]} against {where[1]}: {int(both['agree'].sum())} of {len(both)} verdicts agree, "
        f"answer nll differs by {nll.median():.4f} nats (median), {nll.max():.4f} at most"
    )
    table = both.groupby(["model_1", "attention", "context_length"], sort=False)["agree"].agg(["sum", "count"])
    print(table.rename(columns={"sum": "agree", "count": "of"}).to_string())
    unlike = both[~both["agree"]]
    if not unlike.empty:
        shown = [
            "model_1",
            "context_length",
            "sample",
            "correct_1",
            "margin_1",
            "margin_2",
            "predicted_1",
            "predicted_2",
        ]
        print(unlike[shown].to_string(index=False))
    margins = pd.concat([both[f"margin_{i}"][both["agree"]].abs() for i in (1, 2)])
    print(f"median margin where they agree: {margins.median():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
