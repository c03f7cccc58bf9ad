"""Forced verdicts against greedy decoding, prompt by prompt: python benchmarks/forced_generate.py [PROMPTS] [MODEL ...].

Forced scoring says that greedy decoding writes the answer if every answer token is its row's argmax. Here the same prompts are
decoded with the model's own `generate`, and a verdict is the other's if the text decoded begins with the answer. Where they part,
the smallest lead of an answer token is printed: a near tie can fall either way between two kernels.
"""

import sys
import tempfile

import torch

import ssmax_eval

MODELS = ("softmax-bible-2m", "ssmax-bible-2m", "study/cpu-softmax-s1", "smollm2-135m")
LENGTHS = (256, 512)
DEPTHS = (0, 25, 50, 75, 100)


def main(prompts: str = "250", *models: str) -> None:
    torch.set_num_threads(1)
    trials = int(prompts) // (len(LENGTHS) * len(DEPTHS))
    agree = count = 0
    for model in models or MODELS:
        grid = {"context_lengths": LENGTHS, "depth_percents": DEPTHS, "trials": trials}
        with tempfile.TemporaryDirectory() as folder:
            forced = ssmax_eval.needle(model, output_path=folder, **grid)
            decoded = ssmax_eval.needle(model, output_path=folder, scoring="generate", **grid)
        both = forced.merge(decoded, on="prompt_sha256", suffixes=("", "_decoded"))
        writes = [
            text.lstrip().startswith(answer)
            for text, answer in zip(both["predicted_decoded"], both["expected"], strict=True)
        ]
        same = both["correct"].astype(bool) == writes
        print(f"{model}: {same.sum()} of {len(same)} verdicts agree, {sum(writes)} right", flush=True)
        for _, row in both[~same].iterrows():
            print(
                f"  {row['sample']}: forced {row['correct']}, lead {row['margin']:.4f} logits, {row['predicted_decoded']!r}"
            )
        agree, count = agree + int(same.sum()), count + len(same)
    print(f"all: {agree} of {count}")


if __name__ == "__main__":
    main(*sys.argv[1:])
