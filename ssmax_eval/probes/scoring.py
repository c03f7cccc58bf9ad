"""Score answers: teacher-forced in one forward pass, or decoded.

A token sequence is what greedy decoding would write if and only if each of its tokens is the argmax of the row in
front of it, so one forward over prompt and answer gives greedy decoding's verdict without decoding.
"""

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..attention.recorder import recording
from ..data.prompts import Prompt
from ..errors import UserError
from .attention_mass import AttentionMass, haystack_ends, rounded
from .nll import hidden_states, nll_at

EXTRA_GENERATED_TOKENS = 16
Score = dict[str, Any]
UNSCORED: Score = {
    "predicted": None,
    "predicted_tokens": None,
    "expected_tokens": None,
    "correct": None,
    "first_correct": None,
    "answer_nll": None,
    "answer_ranks": None,
    "margin": None,
}


@torch.inference_mode()
def forced(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], attention_mass: bool = False
) -> list[Score]:
    """Score prompts of equal length by one forward pass; only the answers' rows reach lm_head.

    predicted is each row's argmax given the true tokens before it; answer_nll is summed over the answer, in nats;
    answer_ranks are 0 for the argmax; margin is the smallest lead of an answer token over its best rival, in logits.
    attention_mass adds, from the same forward, what every head does in the answer's rows (attention_mass.MEASURES), and
    haystack_nll: the mean nll, in nats, of the last haystack tokens in front of the question.
    """
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{type(model).__name__}: its forward takes no logits_to_keep; use --scoring generate")
    rows = max(prompt.answer_length for prompt in prompts)
    # the last answer token predicts nothing that is asked
    ids = torch.tensor([prompt.ids[:-1] for prompt in prompts], device=model.device)
    masses = AttentionMass(model, prompts) if attention_mass else None
    with ExitStack() as stack:
        caught = stack.enter_context(hidden_states(model)) if masses else []
        if masses:
            stack.enter_context(recording(model, masses.recorder))
        logits = model(input_ids=ids, logits_to_keep=rows, use_cache=False).logits
    scores = [score_rows(tokenizer, prompt, logits[i, -prompt.answer_length :]) for i, prompt in enumerate(prompts)]
    if masses is None:
        return scores
    read = haystack_nll(model, caught[0], ids, prompts)
    return [score | masses.of(i) | {"haystack_nll": read[i]} for i, score in enumerate(scores)]


def haystack_nll(model: PreTrainedModel, decoded: Any, ids: torch.Tensor, prompts: list[Prompt]) -> list[float | None]:
    """Return the mean nll, in nats, of each prompt's last haystack tokens (attention_mass.haystack_ends); None without any."""
    ends = haystack_ends(prompts)
    longest = max(map(len, ends))
    if not longest:
        return [None] * len(prompts)
    # prompts with fewer such tokens repeat one that does not count
    padded = torch.tensor([[*positions, *[1] * (longest - len(positions))] for positions in ends])
    nll = nll_at(model, decoded, ids, padded)
    means = [nll[i, : len(positions)].mean() for i, positions in enumerate(ends)]
    return rounded(torch.stack(means))


def score_rows(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, logits: torch.Tensor) -> Score:
    """Score one answer from its rows, logits (answer tokens, vocabulary)."""
    logits = logits.float()
    answer = torch.tensor(prompt.ids[-prompt.answer_length :], device=logits.device)
    if not torch.isfinite(logits).all():
        return {**UNSCORED, "error": "logits are not finite"}
    own = logits.gather(1, answer[:, None])
    nll = float((logits.logsumexp(1, keepdim=True) - own).sum())
    rivals = logits.scatter(1, answer[:, None], -math.inf).amax(1, keepdim=True)
    predicted = logits.argmax(1)
    ties_in_front = ((logits == own) & (torch.arange(logits.shape[1], device=logits.device) < answer[:, None])).sum(1)
    hits = predicted == answer
    return {
        "predicted": tokenizer.decode(predicted.tolist()),
        "predicted_tokens": [tokenizer.decode([token]) for token in predicted.tolist()],
        "expected_tokens": [tokenizer.decode([token]) for token in answer.tolist()],
        "correct": bool(hits.all()),
        "first_correct": bool(hits[0]),
        "answer_nll": nll,
        "answer_ranks": ((logits > own).sum(1) + ties_in_front).tolist(),
        "margin": float((own - rivals).min()),
        "error": None,
    }


@torch.inference_mode()
def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> list[Score]:
    """Decode greedily after each prompt's question; correct if the expected text is among what is written.

    Writes the answer's length and 16 tokens more, room for a chat model's words around it. Of the checkpoint's
    generation config only the end tokens count: penalties would make it another decoding than greedy.
    """
    own = model.generation_config
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=own.eos_token_id, pad_token_id=pad)
    try:
        return [generate_one(model, tokenizer, prompt) for prompt in prompts]
    finally:
        model.generation_config = own


def generate_one(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Score:
    ids = torch.tensor([prompt.ids[: -prompt.answer_length]], device=model.device)
    length = prompt.answer_length + EXTRA_GENERATED_TOKENS
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length)
    written = out[0, ids.shape[1] :].tolist()
    text = tokenizer.decode(written, skip_special_tokens=True)
    first = written[:1] == prompt.ids[-prompt.answer_length :][:1]
    return {**UNSCORED, "predicted": text, "correct": prompt.expected in text, "first_correct": first, "error": None}


SCORING = {"forced": forced, "generate": generate}


def is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    signs = ("out of memory", "DefaultCPUAllocator", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in signs)


def score_halving(
    score: Callable[[PreTrainedModel, PreTrainedTokenizerBase, list[Prompt]], list[Score]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    halve: bool,
) -> list[Score]:
    """Score prompts of equal length, in halves when memory runs out if `halve`; what still fails carries its error and no score."""
    try:
        return score(model, tokenizer, prompts)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # outside the handler, so that the failed batch's tensors are gone
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not halve or len(prompts) == 1:
        return [{**UNSCORED, "error": "out of memory"}] * len(prompts)
    middle = len(prompts) // 2
    return [
        each
        for half in (prompts[:middle], prompts[middle:])
        for each in score_halving(score, model, tokenizer, half, halve)
    ]
