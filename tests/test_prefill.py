"""Read in chunks over a KV cache, a prompt has the score it has when read at once; what runs out of memory is tried in less."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import build

from ssmax_eval.data.prompts import Prompt
from ssmax_eval.errors import UserError
from ssmax_eval.position.rope import rope_scaled
from ssmax_eval.probes.attention.masses import MEASURES
from ssmax_eval.probes.needle.probe import NeedleProbe, masses_of
from ssmax_eval.readers.answers import UNSCORED, forced, generate
from ssmax_eval.readers.memory import InMemory
from ssmax_eval.readers.parts import smaller_chunk
from ssmax_eval.readers.prefill import chunks
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.setting import Setting
from ssmax_eval.store import run_id_of

LENGTH = 1200
JAMBA = {
    "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "num_experts": 2, "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 4,
}  # fmt: skip
CHUNKS = (97, 256, 1000, 5000)


def some_prompts(tokenizer, length=LENGTH):
    probe = NeedleProbe(context_lengths=(length,), depth_percents=(0, 40, 100), trials=1)
    return [probe.prompt(tokenizer, sample) for sample in probe.plan()]


def close(found, expected):
    """Compare scores: numbers within rounding, all else exactly."""
    for whole, part in zip(expected, found, strict=True):
        assert part.keys() == whole.keys()
        for name, value in whole.items():
            if name in (*MEASURES, "answer_nll", "margin", "haystack_nll", "top_mass_answer", "top_mass_next"):
                numbers = (torch.from_numpy(np.array(each, dtype=np.float64)) for each in (part[name], value))
                torch.testing.assert_close(*numbers, atol=2e-4, rtol=2e-4, equal_nan=True, msg=name)
            else:
                assert part[name] == value, name


@pytest.mark.parametrize("attention", ["softmax", "ssmax", "learned-p"])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "GPTNeoX", "GPT2", "Gemma3Text"])
def test_chunks_score_as_one_forward(name, attention, tokenizer):
    """With the attention probe and without, whatever the chunk, a batch with needles at the start and the end."""
    model = build(name, vocab_size=1024, max_position_embeddings=2048)
    prompts = some_prompts(tokenizer)
    with Setting.of(attention)(model):
        plain = forced(model, tokenizer, prompts)
        looked_at = masses_of(TransformersReader(model, tokenizer))(prompts)
        for chunk in CHUNKS:
            close(forced(model, tokenizer, prompts, chunk), plain)
            close(masses_of(TransformersReader(model, tokenizer))(prompts, chunk), looked_at)
    visible = [len(prompts[0].ids) - prompts[0].answer_length] * 2
    assert looked_at[0]["visible_keys"] == ([16, visible[1]] if name == "Gemma3Text" else visible)


def test_layers_that_are_not_attention_are_read_in_chunks_too(tokenizer):
    """Of a hybrid, attention beside convolutions: the cache has other layers for them. One of a kind that differs is refused."""
    kinds = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    model = build("Lfm2", vocab_size=1024, max_position_embeddings=2048, **kinds)
    prompts = some_prompts(tokenizer, 300)
    with Setting()(model):
        whole = masses_of(TransformersReader(model, tokenizer))(prompts)
        close(masses_of(TransformersReader(model, tokenizer))(prompts, 50), whole)
    model = build("Jamba", vocab_size=1024, **JAMBA)
    with pytest.raises(
        UserError, match="chunk 50: JambaForCausalLM cannot be read in parts: its numbers in parts differ"
    ):
        forced(model, tokenizer, prompts, 50)


def test_a_chunk_is_no_larger_than_cuda_masks_rightly():
    model = build("Llama")
    assert [*chunks(model, 100, 30)] == [(0, 30), (30, 60), (60, 90), (90, 100)]
    first = next(iter(chunks(model, 2**20, 2**20)))
    assert first == (0, 2048)
    assert first[1] * 2**20 < 2**32


def test_no_forward_reads_more_than_a_chunk(tokenizer):
    """But the last, which holds every row that is looked at; the haystack's, the question's and the answer's."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=2048)
    prompts = some_prompts(tokenizer)
    forced(model, tokenizer, prompts, 256)  # the first time, a short input proves that parts agree
    read = []
    model.register_forward_pre_hook(lambda m, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    forced(model, tokenizer, prompts, 256)
    answer = prompts[0].answer_length
    assert read == [256, 256, 256, 256, LENGTH - 1 - answer - 4 * 256, answer]
    read.clear()
    with Setting()(model):
        masses_of(TransformersReader(model, tokenizer))(prompts, 256)
    assert sum(read[:-1]) == LENGTH - 1
    # the last part is 128 tokens of haystack, a needle that stands among them, and the question
    assert 128 + answer < read[-2] < 200


def test_generate_prefills_in_chunks(tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=2048)
    model.generation_config.eos_token_id = None
    prompts = some_prompts(tokenizer, 300)
    assert generate(model, tokenizer, prompts, 50) == generate(model, tokenizer, prompts)


@pytest.mark.parametrize("scoring_name", ["forced", "generate"])
def test_rope_that_turns_by_the_length_is_not_read_in_parts(scoring_name, tokenizer):
    model = build("Llama", vocab_size=1024)
    probe = NeedleProbe(context_lengths=(300,), depth_percents=(0,), trials=1, scoring=scoring_name, chunk=50)
    with rope_scaled(model, 1.0, None, "dynamic:4", longest=300):
        with pytest.raises(
            UserError, match="chunk 50: LlamaForCausalLM cannot be read in parts: its RoPE .dynamic. turns"
        ):
            probe.check(model, tokenizer)
        with pytest.raises(
            UserError, match="chunk 50: LlamaForCausalLM cannot be read in parts: its RoPE .dynamic. turns"
        ):
            probe.scorer(TransformersReader(model, tokenizer))([probe.prompt(tokenizer, probe.plan()[0])], 50)


def test_a_chunk_is_how_and_not_what():
    plain = NeedleProbe(context_lengths=(300,))
    assert run_id_of(plain.parameters()) == run_id_of(dataclasses.replace(plain, chunk=7).parameters())


def prompt_of(ids, expected=""):
    return Prompt(list(ids), 1, expected, "", "", None, None, None, None, None, 0, None, 0)


class Limited:
    """A scorer that holds so many prompts and tokens."""

    def __init__(self, prompts=2, tokens=10_000):
        self.prompts, self.tokens, self.tried = prompts, tokens, []

    def __call__(self, prompts, chunk=None):
        self.tried.append((len(prompts), chunk))
        length = min(chunk or 10**9, len(prompts[0].ids))
        if len(prompts) > self.prompts or length > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [{**UNSCORED, "correct": True, "error": None}] * len(prompts)


def test_trap_15_out_of_memory_halves_then_is_a_row_with_an_error(tokenizer):
    model, fits = build("Llama", vocab_size=1024), prompt_of([1, 2, 3])
    limited = Limited()
    assert [s["correct"] for s in InMemory(model, limited, True)([fits] * 5)] == [True] * 5
    assert [size for size, _ in limited.tried] == [5, 2, 3, 1, 2]
    never = InMemory(model, Limited(prompts=0), True)([fits] * 5)
    assert never == [{**UNSCORED, "error": "out of memory"}] * 5
    fixed = InMemory(model, Limited(), False)([fits] * 5)
    assert [s["error"] for s in fixed] == ["out of memory"] * 5
    assert all(s["correct"] is None for s in fixed)


def test_out_of_memory_is_tried_in_smaller_chunks_which_stay(tokenizer):
    """The next prompt begins with the chunk that the one before fitted into; 256 tokens are the least."""
    model, long = build("Llama", vocab_size=1024), prompt_of(range(16_000))
    limited = Limited(tokens=1000)
    score = InMemory(model, limited, True)
    assert score([long, long])[0]["correct"]
    assert limited.tried == [(2, None), (1, None), (1, 4000), (1, 1000), (1, 1000)]
    assert score([long])[0]["correct"]
    assert limited.tried[-1] == (1, 1000)
    hopeless = Limited(tokens=10)
    assert InMemory(model, hopeless, True)([long])[0]["error"] == "out of memory"
    assert [chunk for _, chunk in hopeless.tried] == [None, 4000, 1000]


def test_the_mask_of_a_chunk_fits_too(tokenizer):
    """A chunk's mask has rows times all keys: a quarter of a long prompt would need more memory than all of it at once."""
    model = build("Llama", vocab_size=1024)
    assert smaller_chunk(model, None, 16_384) == 4096
    assert smaller_chunk(model, None, 131_072) == 2048
    assert smaller_chunk(model, 2048, 131_072) == 512
    assert smaller_chunk(model, None, 2**20) == 256
    assert smaller_chunk(model, 256, 2**20) is None


def test_dynamic_rope_that_runs_out_of_memory_is_not_cut(tokenizer):
    model = build("Llama", vocab_size=1024)
    limited = Limited(tokens=1000)
    with rope_scaled(model, 1.0, None, "dynamic:4", longest=16_000):
        assert InMemory(model, limited, True)([prompt_of(range(16_000))])[0]["error"] == "out of memory"
    assert [chunk for _, chunk in limited.tried] == [None]


def test_other_errors_are_not_swallowed(tokenizer):
    def broken(prompts, chunk=None):
        raise RuntimeError("a bug of ours")

    with pytest.raises(RuntimeError, match="a bug of ours"):
        InMemory(build("Llama"), broken, True)([prompt_of([1, 2, 3])])
