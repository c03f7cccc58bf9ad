"""Time the attention probe against the plain forward and against eager maps: python benchmarks/attention_mass.py [MODEL] [LENGTH]

All in this process, taking turns; seconds, and peak memory above the weights.
"""

import sys

import torch
from memory import compare

from ssmax_eval import load_model
from ssmax_eval.probes.needle.probe import NeedleProbe, masses_of
from ssmax_eval.readers.answers import forced
from ssmax_eval.readers.transformers import TransformersReader

REPEATS = 3


@torch.inference_mode()
def main(reference: str = "smollm2-135m", length: str = "4096") -> None:
    model, tokenizer = load_model(reference)
    probe = NeedleProbe(context_lengths=(int(length),), depth_percents=(50,), trials=1)
    prompt = probe.prompt(tokenizer, probe.plan()[0])
    ids = torch.tensor([prompt.ids[:-1]], device=model.device)
    ours = model.config._attn_implementation

    def eager() -> object:
        model.set_attn_implementation("eager")
        try:
            return model(ids, use_cache=False, logits_to_keep=prompt.answer_length, output_attentions=True)
        finally:
            model.set_attn_implementation(ours)

    print(f"{reference}, {length} tokens, {model.dtype}, {model.device.type}, {torch.get_num_threads()} threads")
    forced(model, tokenizer, [prompt])
    compare(
        ("needle with attention mass", lambda: masses_of(TransformersReader(model, tokenizer))([prompt])),
        {
            "needle without": lambda: forced(model, tokenizer, [prompt]),
            "eager attention with output_attentions": eager,
        },
        REPEATS,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
