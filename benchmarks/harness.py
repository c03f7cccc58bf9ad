"""Time lm-eval's ways to ask for a needle against ours, all in this process: python benchmarks/harness.py [FOLDER [LENGTH [PROMPTS]]]

FOLDER is a checkpoint directory (default: the bundled SSMax model). The same prompts and model in all of them: lm-eval's own model
type generating as its niah tasks do (128 tokens, and as many as the answer has) and scoring log-likelihoods, our model type in
lm-eval, and the native probe. Prints median seconds and peak memory, and each as a multiple of our model type's.
"""

import sys
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from memory import compare

from ssmax_eval.harness.documents import needle_prompts
from ssmax_eval.harness.model import SSMaxLM
from ssmax_eval.harness.requests import EXACT
from ssmax_eval.models.sources import BUNDLED
from ssmax_eval.probes.needle.probe import NeedleProbe

REPEATS = 3
GREEDY = {"do_sample": False, "temperature": 0.0, "until": []}


def main(folder: str = str(BUNDLED / "ssmax-bible-2m"), length: str = "2048", prompts: str = "4") -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"pretrained": folder, "device": device, "trust_remote_code": True}
    stock, ours = HFLM(**options, max_length=int(length) + 128), SSMaxLM(**options, batch_size="auto")
    grid = {"context_lengths": [int(length)], "depth_percents": [50], "trials": int(prompts)}
    docs = needle_prompts(pretrained=folder, **grid)["test"]
    probe = NeedleProbe((int(length),), (50.0,), int(prompts))

    def requests(kind: str, *second: object) -> list[Instance]:
        return [
            Instance(kind, doc, (doc["context"], *(second or (doc["answer"],))), 0, ("needle", i, 1))
            for i, doc in enumerate(docs)
        ]

    answer = docs[0]["answer_length"]
    generated = stock.generate_until(requests("generate_until", {**GREEDY, "max_gen_toks": answer}), disable_tqdm=True)
    verdicts = {
        "generated": [doc["expected"] in text for doc, text in zip(docs, generated, strict=True)],
        "stock": [greedy for _, greedy in stock.loglikelihood(requests("loglikelihood"), disable_tqdm=True)],
        "ours": [greedy for _, greedy in ours.exact_loglikelihood(requests(EXACT))],
        "native": [row["correct"] for rows in probe(ours.model, ours.tokenizer) for row in rows],
    }
    print(
        f"{Path(folder).name}, {prompts} prompts of {length} tokens, {answer} answer tokens, {ours.model.dtype}, {device}, ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads; right: " + ", ".join(f"{name} {sum(v)}" for name, v in verdicts.items()))
    compare(
        ("lm-eval, our model type", lambda: ours.exact_loglikelihood(requests(EXACT))),
        {
            "native probe": lambda: list(probe(ours.model, ours.tokenizer)),
            "lm-eval, stock log-likelihood": lambda: stock.loglikelihood(requests("loglikelihood"), disable_tqdm=True),
            f"lm-eval, stock generating {answer} tokens": lambda: stock.generate_until(
                requests("generate_until", {**GREEDY, "max_gen_toks": answer}), disable_tqdm=True
            ),
            "lm-eval, stock generating 128 as niah does": lambda: stock.generate_until(
                requests("generate_until", {**GREEDY, "max_gen_toks": 128}), disable_tqdm=True
            ),
        },
        REPEATS,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
