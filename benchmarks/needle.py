"""Time the needle probe against its alternatives, all in this process: python benchmarks/needle.py [MODEL] [LENGTH]

Taking turns; seconds, and peak memory above the weights: prefilled in chunks, token-by-token generation, full logits, one pass
per answer token.
"""

import sys

import torch
from memory import compare

from ssmax_eval import load_model
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.answers import forced

REPEATS = 3


@torch.inference_mode()
def main(reference: str = "smollm2-135m", length: str = "1024") -> None:
    model, tokenizer = load_model(reference)
    probe = NeedleProbe(context_lengths=(int(length),), depth_percents=(50,), trials=1)
    prompt = probe.prompt(tokenizer, probe.plan()[0])
    k = prompt.answer_length
    ids = torch.tensor([prompt.ids], device=model.device)

    def generate() -> object:
        return model.generate(
            input_ids=ids[:, :-k],
            attention_mask=torch.ones_like(ids[:, :-k]),
            max_new_tokens=k,
            do_sample=False,
            pad_token_id=0,
        )

    def full_logits() -> object:
        return model(ids[:, :-1], use_cache=False).logits.float().log_softmax(-1)[:, -k:]

    def pass_per_token() -> object:
        return [model(ids[:, : -k + i], use_cache=False, logits_to_keep=1).logits for i in range(k)]

    print(
        f"{reference}, {length} tokens, {k} answer tokens, {model.dtype}, {model.device.type}, {torch.get_num_threads()} threads"
    )
    forced(model, tokenizer, [prompt])
    compare(
        ("forced scoring, only the answer's rows", lambda: forced(model, tokenizer, [prompt])),
        {
            "the same, prefilled a quarter at a time": lambda: forced(model, tokenizer, [prompt], int(length) // 4),
            "greedy generation with a KV cache": generate,
            "forced scoring over full logits": full_logits,
            "one pass per answer token": pass_per_token,
        },
        REPEATS,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
