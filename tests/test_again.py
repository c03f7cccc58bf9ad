"""Rows read again over a cache, with queries multiplied or scores moved: against whole forwards of models changed by hand."""

import pytest
import torch
from tiny import build

from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.mechanisms.edit import Edit
from ssmax_eval.mechanisms.interface import edited
from ssmax_eval.mechanisms.recorder import Recorder
from ssmax_eval.readers.again import Again

NAMES = [
    "softmax",
    "ssmax",
    "entmax-1.5",
    "differential",
    "sigmoid",
    "cca:g=4,s=8",
]  # the last reads whole sequences only
ROWS = 6


def prompts(length=40):
    return torch.randint(3, 90, (2, length), generator=torch.Generator().manual_seed(1))


def model_with(name, family="Llama", **changes):
    model = build(family, **changes).eval()
    if name != "softmax":
        attach(model, name)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_rows_read_again_are_the_whole_forwards(name):
    model, ids = model_with(name), prompts()
    again = Again(model, ids, 30)
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[:, -ROWS:]
    for _ in range(2):  # the first reading leaves the cache as it was
        assert torch.allclose(again.logits(ROWS), whole, atol=1e-5)
    ones = {i: Edit(10, factor=torch.ones(4), shift=lambda scores, seen: torch.zeros_like(scores)) for i in range(2)}
    assert torch.allclose(again.logits(ROWS, ones), whole, atol=1e-5)
    assert torch.allclose(again.logits(ROWS), whole, atol=1e-5)  # and nothing of an edit stays
    assert (again.whole is None) == (not name.startswith("cca"))


def test_a_factor_on_all_rows_is_a_larger_query_projection():
    model, ids = model_with("softmax"), prompts()
    factors = {0: torch.tensor([0.5, 1, 2, 3]), 1: torch.tensor([1.5, 1, 1, 0.1])}
    with edited(model, {i: Edit(40, factor) for i, factor in factors.items()}), torch.inference_mode():
        ours = model(input_ids=ids).logits
    for i, layer in enumerate(model.model.layers):
        weight = layer.self_attn.q_proj.weight
        weight.data *= factors[i].repeat_interleave(len(weight) // 4)[:, None]
    with torch.inference_mode():
        assert torch.allclose(ours, model(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_edits_of_the_last_rows_are_those_of_a_whole_forward_with_as_many(name):
    model, ids = model_with(name), prompts()
    edits = {
        1: Edit(
            ROWS,
            torch.tensor([0.5, 1, 2, 3.0]),
            lambda scores, seen: torch.linspace(0, 2, scores.shape[-1]).expand(scores.shape),
        )
    }
    with edited(model, edits), torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits
    plain = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(whole[:, :-ROWS], plain[:, :-ROWS], atol=1e-5)  # earlier rows stay as they are
    assert not torch.allclose(whole[:, -ROWS:], plain[:, -ROWS:], atol=1e-3)
    assert torch.allclose(Again(model, ids, 25).logits(ROWS, edits), whole[:, -ROWS:], atol=1e-5)


def test_a_shift_far_down_hides_keys_as_a_mask_does():
    model, ids = model_with("softmax"), prompts()
    away = torch.zeros(40)
    away[10:20] = -50.0
    edits = {i: Edit(ROWS, shift=lambda scores, seen: away.expand(scores.shape)) for i in range(2)}
    mask = torch.ones(40, 40).tril().bool()
    mask[-ROWS:, 10:20] = False
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask[None, None], use_cache=False).logits[:, -ROWS:]
    assert torch.allclose(Again(model, ids, 30).logits(ROWS, edits), hidden, atol=1e-5)


def test_a_shift_gives_the_mass_that_its_closed_form_asks_for():
    """logit(mass after) - logit(mass before) = shift, for softmax of any scores; the recorder sees what was made of it."""
    model, ids = model_with("ssmax"), prompts()
    span, wanted, before = slice(12, 16), 0.7, []

    def shift(scores, seen):
        mass = scores.softmax(-1)[..., span].sum(-1, keepdim=True)
        before.append(mass)
        moved = torch.zeros_like(scores)
        moved[..., span] = torch.logit(torch.tensor(wanted)) - torch.logit(mass)
        return moved

    again = Again(model, ids, 30)
    recorder = Recorder(
        torch.arange(4, 10).expand(2, -1), lambda recorded: recorded.weights[..., span].sum(-1)
    )  # rows from the start
    again.logits(ROWS, {1: Edit(ROWS, shift=shift)}, recorder)
    assert torch.allclose(recorder.kept[1], torch.full_like(recorder.kept[1], wanted), atol=1e-5)
    assert not torch.allclose(before[0], torch.full_like(before[0], wanted), atol=0.1)


@pytest.mark.parametrize("family", ["Qwen3", "Gemma3Text", "GPTNeoX", "GPT2"])
def test_models_of_other_builds_are_read_again_too(family):
    window = {"sliding_window": 16} if family == "Gemma3Text" else {}
    model, ids = model_with("softmax", family, **window), prompts()
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[:, -ROWS:]
    again = Again(model, ids, 30)
    assert torch.allclose(again.logits(ROWS), whole, atol=1e-5)
    assert torch.allclose(again.logits(ROWS, {0: Edit(10, torch.ones(1))}), whole, atol=1e-5)
