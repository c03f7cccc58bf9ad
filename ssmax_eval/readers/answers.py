"""Score answers: teacher-forced in one forward pass, or decoded.

A token sequence is what greedy decoding would write if and only if each of its tokens is the argmax of the row in
front of it, so one forward over prompt and answer gives greedy decoding's verdict without decoding.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.own import says
from ..data.prompts import Prompt
from ..errors import UserError
from ..mechanisms.interface import recording
from ..mechanisms.layers import reads_on
from ..mechanisms.recorder import Recorded, Recorder
from ..position.rotary import rope_switch
from .head import logits_of, nll_of
from .inference import greedy
from .nll import nll_at
from .parts import refuse_unlike_parts
from .prefill import prefill

EXTRA_GENERATED_TOKENS = 16
NOT_FINITE = "logits are not finite"
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


class Watch(Protocol):
    """Looks at what layers do while prompts of equal length are read.

    rows (batch, chosen): the rows to see, as positions in the prompt. positions: of each prompt, the tokens whose mean nll is
    wanted. reduce is given each layer's part, and kept is what it made of it, by layer; nll that mean, in nats, None without tokens.
    """

    rows: torch.Tensor
    positions: list[list[int]]
    kept: dict[int, Any]
    nll: list[float | None]

    def reduce(self, recorded: Recorded) -> Any: ...


@torch.inference_mode()
def forced(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    chunk: int | None = None,
    watch: Watch | None = None,
) -> list[Score]:
    """Score prompts of equal length by one forward pass; only the answers' rows reach lm_head.

    predicted is each row's argmax given the true tokens before it; answer_nll is summed over the answer, in nats;
    answer_ranks are 0 for the argmax; margin is the smallest lead of an answer token over its best rival, in logits.
    watch sees, from the same forward, what every layer does in the rows that it asks for. chunk: tokens to prefill at a
    time over a KV cache; None reads all at once. Raises UserError for a model that is not the same in parts.
    """
    rows = max(prompt.answer_length for prompt in prompts)
    # the last answer token predicts nothing that is asked; lm-eval leaves it out too
    ids = torch.tensor([prompt.ids[:-1] for prompt in prompts], device=reads_on(model))
    inputs = ids.shape[1]
    refuse_unlike_parts(model, chunk, inputs)
    read = watch.positions if watch else []
    start, cache = 0, None
    if chunk is not None and chunk < inputs:
        start = last_part(inputs - rows, read)
        cache = prefill(model, ids, start, chunk, keep_all=watch is not None) if start else None
    recorder = Recorder(watch.rows - start, watch.reduce) if watch else None
    options = {"use_cache": False} if cache is None else {"past_key_values": cache, "use_cache": True}
    with recording(model, recorder) if recorder else nullcontext():
        logits, decoded = logits_of(model, ids[:, start:], slice(-rows, None), **options)
    if (switch := rope_switch(model)) is not None and inputs - rows < switch < inputs:
        if watch:
            raise UserError(
                f"context length {inputs + 1}: RoPE turns otherwise above {switch} tokens, which is inside the answer, so its rows "
                f"come from two forwards; ask for at most {switch} or at least {switch + rows + 1} tokens"
            )
        # greedy decoding reads up to the switch with the frequencies of short contexts
        early = switch - (inputs - rows)
        short, _ = logits_of(model, ids[:, :switch], slice(-early, None), use_cache=False)
        logits = torch.cat([short, logits[:, early:]], 1)
    scores = [score_rows(tokenizer, prompt, logits[i, -prompt.answer_length :]) for i, prompt in enumerate(prompts)]
    if watch and recorder:
        watch.kept = recorder.kept
        watch.nll = mean_nll(model, decoded, ids[:, start:], [[at - start for at in each] for each in read])
    return scores


def last_part(row: int, positions: list[list[int]]) -> int:
    """Return where the last part of prompts begins, which holds every row that is looked at: `row`, and those before positions."""
    return min([row, *(each[0] - 1 for each in positions if each)])


def mean_nll(model: PreTrainedModel, decoded: Any, ids: torch.Tensor, positions: list[list[int]]) -> list[float | None]:
    """Return the mean nll, in nats, of each prompt's tokens at some positions of ids; None where there are none."""
    longest = max(map(len, positions))
    if not longest:
        return [None] * len(positions)
    # prompts with fewer such tokens repeat one that does not count
    padded = torch.tensor([[*each, *[1] * (longest - len(each))] for each in positions])
    if isinstance(decoded, torch.Tensor):  # all logits
        nll = nll_of(decoded[:, :-1], ids[:, 1:]).gather(1, padded - 1)
    else:
        nll = nll_at(model, decoded, ids, padded)
    return [float(nll[i, : len(each)].mean()) if each else None for i, each in enumerate(positions)]


def score_rows(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, logits: torch.Tensor) -> Score:
    """Score one answer from its rows, logits (answer tokens, vocabulary)."""
    logits = logits.float()
    answer = torch.tensor(prompt.ids[-prompt.answer_length :], device=logits.device)
    if not torch.isfinite(logits).all():
        return {**UNSCORED, "error": NOT_FINITE}
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
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], chunk: int | None = None
) -> list[Score]:
    """Decode greedily after each prompt's question; correct if what is written says the expected answer.

    Writes as many tokens as to_write says. chunk as in forced.
    """
    with greedy(model, tokenizer):
        return [generate_one(model, tokenizer, prompt, chunk) for prompt in prompts]


def generate_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chunk: int | None
) -> Score:
    ids = torch.tensor([prompt.ids[: -prompt.answer_length]], device=reads_on(model))
    refuse_unlike_parts(model, chunk, ids.shape[1])
    with finite_logits(model) as finite:
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=to_write(prompt),
            prefill_chunk_size=chunk,
        )
    if not finite():
        return {**UNSCORED, "error": NOT_FINITE}
    written, eos = out[0, ids.shape[1] :].tolist(), model.generation_config.eos_token_id
    text = tokenizer.decode(written, skip_special_tokens=True)
    found = {"predicted": text, "correct": says(text, prompt.expected), "cut": is_cut(written, to_write(prompt), eos)}
    first = written[:1] == prompt.ids[-prompt.answer_length :][:1]
    return {**UNSCORED, **found, "first_correct": first, "error": None}


def is_cut(written: list[int], most: int, ends: int | list[int] | None) -> bool:
    """Tell whether tokens end where no more may be written, and not with one that ends a text."""
    return len(written) >= most and written[-1] not in (ends if isinstance(ends, list) else [ends])


def to_write(prompt: Prompt) -> int:
    """Return how many tokens are written for a prompt: as its task says, else its answer's and room for words around it."""
    return prompt.answer_length + EXTRA_GENERATED_TOKENS if prompt.to_write is None else prompt.to_write


@contextmanager
def finite_logits(model: PreTrainedModel) -> Iterator[Callable[[], bool]]:
    """Watch the last row of every forward's logits while the block runs; what is yielded tells whether all were finite."""
    seen: list[torch.Tensor] = []

    def watch(module: Any, arguments: Any, output: Any) -> None:
        seen.append(torch.isfinite(output.logits[:, -1]).all())

    hook = model.register_forward_hook(watch)
    try:
        yield lambda: all(bool(each) for each in seen)
    finally:
        hook.remove()
