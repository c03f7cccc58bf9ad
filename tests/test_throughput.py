"""Throughput: operations as torch counts them, speed from the log's lines at the training length."""

import pytest
import torch
from tiny import build
from torch.utils.flop_counter import FlopCounterMode

from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.training.recipes import recipe
from ssmax_eval.training.throughput import flops_per_token, matmul_rate, throughput


@pytest.mark.parametrize(
    ("name", "changes"), [("Qwen3", {"tie_word_embeddings": True}), ("Llama", {"tie_word_embeddings": False})]
)
def test_operations_are_those_that_torch_counts(name, changes):
    """A training step through eager attention, whose products are whole squares: causal ones are (T + 1) / 2T of them."""
    model = build(name, num_key_value_heads=4, attn_implementation="eager", **changes).train()
    length = 48
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.zeros(3, length, dtype=torch.long)).logits
        logits.float().sum().backward()
    attention = 12 * model.config.num_hidden_layers * 4 * 8
    whole = flops_per_token(model, length) + attention * (length - (length + 1) / 2)
    # 1e-4: some versions of transformers multiply positions and frequencies of RoPE as matrices
    assert counter.get_total_flops() == pytest.approx(3 * length * whole, rel=1e-4)


def test_what_a_mechanism_learns_is_no_matrix():
    model = build("Qwen3")
    before = flops_per_token(model, 100)
    attach(model, "ssmax-bias")
    assert flops_per_token(model, 100) == before


def test_speed_is_of_the_long_steps_and_not_of_a_pause():
    short = recipe("cpu").changed({"steps": "100", "short_share": "0.5"})
    model = build("Qwen3")
    # a thousand tokens a second while short, a hundred afterwards, with one pause for a checkpoint
    ends = [(step, 100 * step, step / 10) for step in range(5, 51, 5)]
    ends += [(60, 6000, 15.0), (70, 7000, 25.0), (80, 8000, 85.0), (90, 9000, 95.0), (100, 10_000, 105.0)]
    log = [{"step": step, "tokens": tokens, "seconds": seconds} for step, tokens, seconds in ends]
    found = throughput(model, short, log, torch.device("cpu"), torch.float32)
    assert found["tokens_per_second"] == 100
    assert found["flops_per_second"] == pytest.approx(100 * flops_per_token(model, short.train_length))
    assert found["utilization"] == pytest.approx(found["flops_per_second"] / found["matmul_flops_per_second"], abs=1e-4)
    assert throughput(model, short, log[-1:], torch.device("cpu"), torch.float32) == {}


def test_the_matrix_rate_is_what_the_clock_says():
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14
