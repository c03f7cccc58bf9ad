"""Every mechanism through load_model, AutoModelForCausalLM and lm-eval's own transformers model type: the same numbers.

`python tests/test_lm_eval_mechanisms.py FOLDER...` compares checkpoints that were trained.
"""

import sys
from pathlib import Path

import pytest
import torch
from harnessed import Instance, ours, stock
from tiny import build, needed_by
from transformers import AutoModelForCausalLM

from ssmax_eval import attach, load_model, save_model
from ssmax_eval.mechanisms.attach import mechanisms_of
from ssmax_eval.mechanisms.registry import mechanisms

TEXTS = [
    ("The special magic Tokyo number is:", " 8106422."),
    ("A short", " one"),
    ("The rain had stopped. " * 9, "The wind."),
]


def differences(folder: Path) -> dict[str, float]:
    """Return how far logits and log-likelihoods of a checkpoint are apart, the ways it can be opened; in float32."""
    model, tokenizer = load_model(str(folder), dtype="float32", device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="float32").eval()
    ids = torch.tensor([tokenizer(TEXTS[-1][0])["input_ids"][:60]])
    with torch.inference_mode():
        mine = model(input_ids=ids).logits.log_softmax(-1)
        logits = (mine - theirs(input_ids=ids).logits.log_softmax(-1)).abs().max()
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(TEXTS)]
    # lm-eval's own type cuts texts to the length that a model was trained at, unless it is told another
    lms = [stock(folder, dtype="float32", batch_size=2, max_length=512), ours(folder, dtype="float32", batch_size=2)]
    found = [[value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)] for lm in lms]
    own = []
    for context, answer in (lms[0]._encode_pair(*pair) for pair in TEXTS):
        whole = torch.tensor([context + answer])
        with torch.inference_mode():
            rows = model(input_ids=whole[:, :-1]).logits.log_softmax(-1)
        own.append(float(rows[0, len(context) - 1 :].gather(1, whole[0, len(context) :, None]).sum()))
    apart = [max(abs(a - b) for a, b in zip(own, each, strict=True)) for each in found]
    return {"AutoModelForCausalLM": float(logits), "lm-eval hf": apart[0], "lm-eval ssmax-eval": apart[1]}


@pytest.mark.parametrize("name", sorted(mechanisms()))
def test_a_checkpoint_opens_alike_everywhere(name, tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512, **needed_by(name))
    attach(model, name)
    generator = torch.Generator().manual_seed(3)
    for mechanism in mechanisms_of(model).values():
        for parameter in mechanism.parameters():
            parameter.data += 0.1 * torch.rand(parameter.shape, generator=generator)
    save_model(model, tokenizer, tmp_path)
    assert max(differences(tmp_path).values()) < 2e-4  # nats of texts that lm-eval pads, and reads together


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(each, *(f"{name} {value:.2g}" for name, value in differences(Path(each)).items()), flush=True)
