"""Time the loss by position against full logits: python benchmarks/loss.py [MODEL] [LENGTH]

All in this process, taking turns; seconds, and peak memory above the weights.
"""

import sys

import torch
from memory import compare

from ssmax_eval import load_model
from ssmax_eval.data.documents import Documents
from ssmax_eval.readers.nll import token_nll

REPEATS = 1


@torch.inference_mode()
def main(reference: str = "smollm2-135m", length: str = "16384") -> None:
    model, tokenizer = load_model(reference)
    ids = torch.tensor([Documents().windows(tokenizer, int(length), 1, 0)[0].ids], device=model.device)

    def full_logits() -> object:
        logits = model(ids[:, :-1], use_cache=False).logits.float()
        return torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="none")

    print(f"{reference}, {length} tokens, {model.dtype}, {model.device.type}, {torch.get_num_threads()} threads")
    token_nll(model, ids[:, :512])
    compare(
        ("nll, head in chunks", lambda: token_nll(model, ids)),
        {"nll from full logits": full_logits, "nll, prefilled 2,048 at a time": lambda: token_nll(model, ids, 2048)},
        REPEATS,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
