"""Attention mass on the needle: how much of the row that predicts the answer each head puts on the key tokens."""

import math
from typing import Any

import torch
from torch import Tensor

from ...data.prompts import Prompt
from ...mechanisms.recorder import Recorded
from ...readers.answers import Score
from ...readers.forked import Trunk
from ...readers.memory import BranchScorer, Scorer
from ...readers.reader import Reader
from ...readers.transformers import TransformersReader

MASSES = ("mass_answer", "mass_needle", "log_odds", "mass_answer_mean", "mass_next")
MEASURES = (*MASSES, "mass_first", "mass_question", "entropy", "maximum", "maximum_at", "row_sum")
BY_TOKEN = ("top_mass_answer", "top_mass_next")
HAYSTACK_TOKENS = 128  # whose nll tells whether the model still reads where the prompt ends
DIGITS = 6  # kept of each stored number


class AttentionMass:
    """What every head does in the rows that predict the answers of prompts of equal length.

    inputs: how many of a prompt's tokens the model is given; its last rows predict the answer. A reader hands over each layer's
    part while it reads; `of(i)` is prompt i's row part afterwards: layers, the index of each layer that attends, and for each
    measure a list of those layers of heads. Of the row that predicts the answer's first token:
    mass_answer and mass_needle, the attention summed over the value's tokens in the needle and over its whole sentence;
    log_odds, ln(mass_answer / mass elsewhere), exact where the mass itself rounds to 0 or 1; mass_first, on the prompt's
    first token (the sink); mass_question, on the tokens after the haystack; entropy of the row's shares, in nats; maximum, the
    largest weight, and maximum_at, its position; row_sum, of all weights, None where it is 1 by definition. Where weights can be
    negative there are no log_odds and no entropy. Means over all rows of the answer: mass_answer_mean, of mass_answer; mass_next, of the
    weight on the one value token that has to be written next, which copying needs beyond the first token (None where
    needle and answer have the value in different tokens). Without a needle in the prompt, MASSES are None. haystack_nll: the mean
    nll, in nats, of the last haystack tokens in front of the question.
    visible_keys: for each layer, how many keys the first row sees. top_mass_answer, top_mass_next: for each answer token,
    the highest of all heads of the mass on the answer and on the token to be written, in the row that predicts it.
    """

    def __init__(self, prompts: list[Prompt], inputs: int) -> None:
        self.prompts = prompts
        self.positions = haystack_ends(prompts)
        self.kept: dict[int, Any] = {}
        self.nll: list[float | None] = []
        longest = max(prompt.answer_length for prompt in prompts)
        # the row that predicts each answer token, one of the last; shorter answers repeat their last one, with no weight
        rows = [[inputs - p.answer_length + min(i, p.answer_length - 1) for i in range(longest)] for p in prompts]
        weights = [[(i < p.answer_length) / p.answer_length for i in range(longest)] for p in prompts]
        self.weights = torch.tensor(weights)
        keys = [
            [(p.value_start or 0) + (min(i, p.answer_length - 1) if copies(p) else 0) for i in range(longest)]
            for p in prompts
        ]
        self.next_keys = torch.tensor(keys)
        self.spans = [spans(prompts, inputs, name) for name in ("value", "needle")]
        self.questions = torch.arange(inputs) >= torch.tensor([p.question_start for p in prompts])[:, None]
        self.rows = torch.tensor(rows)

    def reduce(self, recorded: Recorded) -> dict[str, Tensor]:
        """Return the measures (batch, heads) of one layer."""
        by_map = self.of_scores(recorded.scores) if recorded.scores is not None else self.of_weights(recorded)
        return {"visible_keys": recorded.seen.mask[:, :, 0].sum(-1).amax(1).expand(len(self.prompts)), **by_map}

    def of_scores(self, scores: Tensor) -> dict[str, Tensor]:
        """Return the measures of weights that are the softmax of scores (batch, heads, rows, keys), in logarithms."""
        value, needle = (span[:, None, None].to(scores.device) for span in self.spans)
        whole = scores.logsumexp(-1)
        on_value = scores.masked_fill(~value, -math.inf).logsumexp(-1)
        elsewhere = scores[:, :, 0].masked_fill(value[:, :, 0], -math.inf).logsumexp(-1)
        on_needle = scores[:, :, 0].masked_fill(~needle[:, :, 0], -math.inf).logsumexp(-1)
        first = (scores[:, :, 0] - whole[:, :, :1]).exp()
        on_next = (self.at_next(scores) - whole).exp()
        return {
            **self.measures(first, (on_value - whole).exp(), on_next),
            "mass_needle": (on_needle - whole[:, :, 0]).exp(),
            "log_odds": on_value[:, :, 0] - elsewhere,
            "entropy": torch.special.entr(first).sum(-1),
            "row_sum": torch.full_like(whole[:, :, 0], math.nan),
        }

    def of_weights(self, recorded: Recorded) -> dict[str, Tensor]:
        """Return the measures of weights as a mechanism gives them: perhaps signed, sparse, or not summing to 1."""
        weights, mechanism = recorded.weights, recorded.mechanism
        value, needle = (span[:, None, None].to(weights.device) for span in self.spans)
        first = weights[:, :, 0]
        on_value = weights.masked_fill(~value, 0).sum(-1)
        elsewhere = first.masked_fill(value[:, :, 0], 0).sum(-1)
        undefined = torch.full_like(elsewhere, math.nan)
        total = first.sum(-1)
        shares = first / total[..., None]
        return {
            **self.measures(first, on_value, self.at_next(weights)),
            "mass_needle": first.masked_fill(~needle[:, :, 0], 0).sum(-1),
            "log_odds": undefined if mechanism.signed else on_value[:, :, 0].log() - elsewhere.log(),
            "entropy": undefined if mechanism.signed else torch.special.entr(shares).sum(-1),
            "row_sum": undefined if mechanism.normalised else total,
        }

    def measures(self, first: Tensor, on_value: Tensor, on_next: Tensor) -> dict[str, Tensor]:
        """Return the measures that are sums of weights.

        first: of the answer's first row (batch, heads, keys). on_value, on_next: on the value and on the token to be written
        next, in all of the answer's rows (batch, heads, rows).
        """
        weights = self.weights.to(first.device)[:, None]
        maximum, maximum_at = first.max(-1)
        return {
            "mass_answer": on_value[:, :, 0],
            "mass_first": first[..., 0],
            "mass_question": first.masked_fill(~self.questions[:, None].to(first.device), 0).sum(-1),
            "maximum": maximum,
            "maximum_at": maximum_at,
            "mass_answer_mean": (on_value * weights).sum(-1),
            "mass_next": (on_next * weights).sum(-1),
            "top_mass_answer": on_value.amax(1),
            "top_mass_next": on_next.amax(1),
        }

    def at_next(self, by_key: Tensor) -> Tensor:
        """Return what scores or weights (batch, heads, rows, keys) are at the token to be written next."""
        at = self.next_keys.to(by_key.device)[:, None, :, None].expand(-1, by_key.shape[1], -1, 1)
        return by_key.gather(-1, at)[..., 0]

    def of(self, index: int) -> dict[str, Any]:
        """Return the measures of prompt `index`, each a list of layers of heads, and BY_TOKEN, each a list of answer tokens."""
        kept = self.kept
        parts: dict[str, Any] = {"layers": list(kept)}
        parts |= {measure: [rounded(each[measure][index]) for each in kept.values()] for measure in MEASURES}
        if all(value is None for layer in parts["row_sum"] for value in layer):
            parts["row_sum"] = None
        parts["haystack_nll"] = rounded(torch.tensor([math.nan if self.nll[index] is None else self.nll[index]]))[0]
        parts["visible_keys"] = [int(each["visible_keys"][index]) for each in kept.values()]
        for name in BY_TOKEN:
            by_layer = torch.stack([each[name][index].cpu() for each in kept.values()])
            parts[name] = rounded(by_layer.amax(0)[: self.prompts[index].answer_length])
        if self.prompts[index].value_start is None:
            parts |= dict.fromkeys((*MASSES, *BY_TOKEN))
        elif not copies(self.prompts[index]):
            parts |= dict.fromkeys(("mass_next", "top_mass_next"))
        return parts


def copies(prompt: Prompt) -> bool:
    """Tell whether the needle holds the answer in the answer's own tokens."""
    if prompt.value_start is None or prompt.value_end is None:
        return False
    return prompt.ids[prompt.value_start : prompt.value_end] == prompt.ids[-prompt.answer_length :]


def spans(prompts: list[Prompt], inputs: int, name: str) -> Tensor:
    """Return which of the input tokens are the prompts' value or needle, bool (batch, inputs)."""
    position = torch.arange(inputs)
    ends = [(getattr(p, f"{name}_start"), getattr(p, f"{name}_end")) for p in prompts]
    return torch.stack([(position >= (start or 0)) & (position < (end or 0)) for start, end in ends])


def haystack_ends(prompts: list[Prompt]) -> list[list[int]]:
    """Return the positions of each prompt's last haystack tokens in front of the question, the needle's left out."""
    positions = []
    for p in prompts:
        needle = range(p.needle_start or 0, p.needle_end or 0)
        free = [at for at in range(1, p.question_start) if at not in needle]
        positions.append(free[-HAYSTACK_TOKENS:])
    return positions


def rounded(values: Tensor) -> list[float | int | None]:
    """Return numbers with the digits that are stored; what is not finite (a head that sees none of the needle) is None."""
    if not values.is_floating_point():
        return [int(value) for value in values.tolist()]
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]


def masses_of(reader: Reader) -> Scorer:
    """Return what scores prompts of equal length, and tells what every head does in their answers' rows."""

    assert isinstance(reader, TransformersReader)  # no other gives weights

    def score(prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        masses = AttentionMass(prompts, reader.inputs(prompts[0]))
        return [each | masses.of(i) for i, each in enumerate(reader.answers(prompts, chunk, masses))]

    return score


def branch_masses_of(reader: TransformersReader) -> BranchScorer:
    """Return what scores prompts as branches of a trunk, and tells what every head does in their answers' rows."""

    def score(prompts: list[Prompt], starts: list[int], trunk: Trunk) -> list[Score]:
        masses = [AttentionMass([prompt], reader.inputs(prompt)) for prompt in prompts]
        scores = reader.forked(prompts, starts, trunk, masses)
        return [each | watch.of(0) for each, watch in zip(scores, masses, strict=True)]

    return score
