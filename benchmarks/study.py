"""The study set: python benchmarks/study.py trains it, or goes on, and measures it: results/models/study, opened as study/NAME.

Recipe cpu on the World English Bible: seeds 0 to 3 of softmax and SSMax; seed 0 of the paper's (c), (d) and (f), of its
learned p_n, and of the pair without QK-norm. Each model's accuracy.json has the share of needles it finds at 1 to 16 times its
training length (the default grid of `ssmax-eval needle`), and the run that says so..
"""

import argparse
import json
from pathlib import Path

import torch

import ssmax_eval
from ssmax_eval.data.prompts import CONTROLS
from ssmax_eval.models.sources import ACCURACY, STUDY, STUDY_FOLDER
from ssmax_eval.probes.defaults import TRIALS

MODELS = {
    **{f"cpu-{law}-s{seed}": {"attention": law, "seed": seed} for seed in range(4) for law in ("softmax", "ssmax")},
    "cpu-ssmax-fixed-s0": {"attention": "ssmax-fixed"},
    "cpu-ssmax-bias-s0": {"attention": "ssmax-bias"},
    "cpu-ssmax-late-s0": {"attention": "softmax", "swap_to": "ssmax"},
    "cpu-learned-p-s0": {"attention": "learned-p"},
    "cpu-no-qk-norm-softmax-s0": {"attention": "softmax", "qk_norm": False},
    "cpu-no-qk-norm-ssmax-s0": {"attention": "ssmax", "qk_norm": False},
}


def measure(name: str, store: Path) -> None:
    """Run the default needle grid on a model of the study set and write its accuracy.json."""
    rows = ssmax_eval.needle(f"{STUDY}{name}", output_path=store)
    grid = rows[~rows["control"].isin(CONTROLS)]
    by_length = grid.groupby("context_length")["correct"]
    shortest = min(by_length.groups)
    record = {
        "task": "single",
        "haystack": "text",
        "plan": int(grid["plan"].iloc[0]),
        "trials": TRIALS,
        "context_lengths": [int(length) for length in by_length.groups],
        "times": [length / shortest for length in by_length.groups],
        "accuracy": [round(float(share), 4) for share in by_length.mean()],
        "prompts": int(by_length.size().iloc[0]),
        "run_id": str(grid["run_id"].iloc[0]),
    }
    (STUDY_FOLDER / name / ACCURACY).write_text(json.dumps(record, indent=1) + "\n")
    print(name, *record["accuracy"], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=[*MODELS])
    parser.add_argument("--measure", action="store_true", help="train nothing")
    parser.add_argument("--store", type=Path, default=Path("results/study"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.models:
        if not given.measure:
            ssmax_eval.train("cpu", out=STUDY_FOLDER / name, device="cpu", **MODELS[name])
        measure(name, given.store)


if __name__ == "__main__":
    main()
