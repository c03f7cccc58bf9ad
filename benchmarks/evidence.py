"""Needle accuracy of many trained models as one table: python benchmarks/evidence.py TABLE.csv MODEL... [--attention ...] [...].

A line per model, law, theta factor, haystack and length: prompts, accuracy, first token, nll, and the run's id. Models are
folders; their names become labels. Runs are kept, so an interrupted table goes on.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

import ssmax_eval

BY = ["model", "attention", "attention_swapped", "task", "haystack", "rope_theta_factor", "context_length", "run_id"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--attention", nargs="*", default=[], help="also swap these in")
    parser.add_argument("--lengths", type=int, nargs="+", required=True)
    parser.add_argument("--trials", type=int, default=40, help="of each of five depths")
    parser.add_argument("--haystacks", nargs="+", default=["text"])
    parser.add_argument("--thetas", type=float, nargs="+", default=[1.0])
    parser.add_argument("--value", default="number")
    parser.add_argument("--store", default="results/evidence")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    if len({Path(model).name for model in given.models}) < len(given.models):
        parser.error("two model folders have the same name")
    tables = []
    for haystack in given.haystacks:
        rows = ssmax_eval.needle(
            {Path(model).name: model for model in given.models},
            attention=[None, *given.attention],
            context_lengths=given.lengths,
            trials=given.trials,
            haystack=haystack,
            value=given.value,
            rope_theta_factor=given.thetas,
            output_path=given.store,
        )
        rows["correct"], rows["first_correct"] = (rows[name].astype("Float64") for name in ("correct", "first_correct"))
        grouped = rows.groupby(BY, sort=False, dropna=False)
        tables.append(
            grouped.agg(
                prompts=("correct", "count"),
                accuracy=("correct", "mean"),
                first=("first_correct", "mean"),
                nll=("answer_nll", "mean"),
            ).reset_index()
        )
    table = pd.concat(tables).drop_duplicates().round(4)
    given.table.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.table, index=False)
    by = ["model", "attention", "attention_swapped", "haystack", "rope_theta_factor"]
    print(table.pivot(index=by, columns="context_length", values="accuracy").round(2).to_string())


if __name__ == "__main__":
    main()
