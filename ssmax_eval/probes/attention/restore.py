"""Attention given back, and taken away: are prompts lost because heads no longer have what they have at the training length?

Heads, and what they have, are chosen on prompts of their own. In the judged prompts the rows of question and answer are read
again over one prefill, with the scores of these heads moved in closed form until they have as much.
"""

import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...data.prompts import Prompt
from ...errors import UserError
from ...mechanisms.edit import ALL_ROWS, Edit
from ...mechanisms.layers import layer_indices
from ...mechanisms.mass import Wanted, towards
from ...mechanisms.seen import Seen
from ...readers.again import Again
from ...readers.answers import Score, score_rows
from ...readers.forked import Trunk
from ...readers.memory import BranchScorer, Scorer
from ...readers.reader import Reader
from ...readers.transformers import TransformersReader
from .axes import ALL, AXES, HAYSTACK, JOINED, NOTHING, OTHERS, TOGETHER, Axis
from .masses import branch_masses_of, masses_of, rounded
from .tail import Curves, Tail, TailMasses

log = logging.getLogger(__name__)

HOLDS = 0.3  # mean mass from which a head counts as holding something
Head = tuple[int, int]  # layer, head


@dataclass(frozen=True, eq=False)
class Chosen:
    """What is given back, and taken away.

    length: the context length whose attention is given back, in tokens. heads, others: by axis, those that hold it there, and
    as many that do not. given: the masses there. taken: those at the longest length; None where there is no longer one.
    """

    length: int
    heads: Mapping[Axis, list[Head]]
    others: Mapping[Axis, list[Head]]
    given: Curves
    taken: Curves | None

    def told(self) -> dict[str, list[list[float]]]:
        """Return each axis's heads for a row: layer, head, its mass on other prompts at the length and at the longest."""
        of = [each for each in (self.given, self.taken) if each is not None]
        told: dict[str, list[list[float]]] = {}
        for axis, heads in self.heads.items():
            means = [each.on(axis) for each in of]
            told[axis.name] = [[*head, *(round(mean[head], 4) for mean in means)] for head in heads]
            told[axis.name + OTHERS] = [
                [*head, *(round(mean[head], 4) for mean in means)] for head in self.others[axis]
            ]
        return told


def choose(length: int, scores: Mapping[int, list[Score]], seed: int) -> Chosen:
    """Return heads and masses of what prompts told that are not judged (tail_masses), by their length.

    Those of `length` that were answered right count, or all where none was. Raises UserError where none could be read.
    """
    told = {each: [score["tail"] for score in found if score.get("tail")] for each, found in scores.items()}
    if lacking := next((each for each, found in told.items() if not found), None):
        reason = next((score["error"] for score in scores[lacking]), "there are none")
        raise UserError(f"restore: no prompt of {lacking} tokens to choose heads on could be read ({reason})")
    right = [score["tail"] for score in scores[length] if score.get("tail") and score["correct"]]
    if not right:
        log.warning(
            "ssmax-eval: note: restore: of %d prompts of %s tokens that choose heads none is answered right; what they have in wrong "
            "answers is given back, which need not repair anything",
            len(told[length]),
            f"{length:,}",
        )
    given = Curves.over(right or told[length])
    longest = max(told)
    heads, others = {}, {}
    for axis in AXES:
        mean = given.on(axis)
        found = sorted((head for head in mean if mean[head] >= HOLDS), key=lambda head: (-mean[head], head))
        if found:
            heads[axis] = found
    held = {head for found in heads.values() for head in found}
    for axis, found in heads.items():
        left = [head for head in given.on(axis) if head not in found]
        random.Random(f"{seed}/others/{axis.name}").shuffle(left)
        # those that hold nothing at all first
        others[axis] = sorted(left, key=lambda head: head in held)[: len(found)]
    return Chosen(length, heads, others, given, Curves.over(told[longest]) if longest > length else None)


def tail_masses(reader: Reader) -> Scorer:
    """Return what scores prompts of equal length, and tells in `tail` what every head has in the rows of question and answer."""
    assert isinstance(reader, TransformersReader)

    def score(prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        masses = TailMasses(prompts, reader.inputs(prompts[0]))
        return [each | {"tail": masses.of(i)} for i, each in enumerate(reader.answers(prompts, chunk, masses))]

    return score


def restored_by(reader: Reader, chosen: Callable[[], Chosen]) -> Scorer:
    """Return what scores prompts of equal length with their masses, and tells whether their answers return, or are lost."""
    assert isinstance(reader, TransformersReader)
    masses = masses_of(reader)

    def score(prompts: list[Prompt], chunk: int | None = None) -> list[Score]:
        return with_outcomes(
            reader, prompts, masses(prompts, chunk), chosen, partial(reader.again, prompts, chunk=chunk)
        )

    return score


def branch_restored_by(reader: Reader, chosen: Callable[[], Chosen]) -> BranchScorer:
    """Return what does the same with prompts as branches of a trunk."""
    assert isinstance(reader, TransformersReader)
    masses = branch_masses_of(reader)

    def score(prompts: list[Prompt], starts: list[int], trunk: Trunk) -> list[Score]:
        opened = partial(reader.again, prompts, starts=starts, trunk=trunk)
        return with_outcomes(reader, prompts, masses(prompts, starts, trunk), chosen, opened)

    return score


def with_outcomes(
    reader: TransformersReader,
    prompts: list[Prompt],
    scores: list[Score],
    chosen: Callable[[], Chosen],
    opened: Callable[..., Again],
) -> list[Score]:
    """Return the scores of prompts, all with a needle or none, and what outcomes they have."""
    if prompts[0].value_start is None:  # a control
        return scores
    more = outcomes(reader, prompts, chosen(), opened)
    return [one | (two if one["error"] is None else {}) for one, two in zip(scores, more, strict=True)]


def outcomes(
    reader: TransformersReader, prompts: list[Prompt], chosen: Chosen, opened: Callable[..., Again] | None = None
) -> list[Score]:
    """Return what each prompt's row tells of its answer with attention given back, and at the chosen length taken away.

    opened: returns the prompts with all rows from one on to be read again, behind edits or none (reader.again).
    """
    model, tail = reader.model, Tail(prompts, reader.inputs(prompts[0]))
    opened = opened or partial(reader.again, prompts)
    longest = max(prompt.answer_length for prompt in prompts)

    def verdicts(again: Again, edits: Mapping[int, Edit]) -> list[Score]:
        logits = again.logits(longest, edits)
        return [score_rows(reader.tokenizer, p, logits[i, -p.answer_length :]) for i, p in enumerate(prompts)]

    again = opened(tail.start)
    layers = set(layer_indices(model).values())
    restored = {NOTHING: verdicts(again, {layer: Edit(tail.rows, shift=nothing) for layer in layers})}
    restored |= {name: verdicts(again, edits) for name, edits in edited_by(chosen, tail, chosen.given, True)}
    taken = {}
    if chosen.taken is not None and len(prompts[0].ids) == chosen.length:
        taken = {name: verdicts(again, edits) for name, edits in edited_by(chosen, tail, chosen.taken, False)}
    if again.whole is None:
        del again  # one cache at a time
        again = opened(tail.start, dict.fromkeys(layers, Edit(ALL_ROWS, factor=sharpened(chosen.length))))
        # where others of the batch have longer questions, some rows of the tail are haystack too
        haystack = dict.fromkeys(layers, Edit(tail.rows, factor=sharpened(chosen.length, ~tail.asked)))
        restored[HAYSTACK] = verdicts(again, haystack)
        together = dict(edited_by(chosen, tail, chosen.given, True)).get(TOGETHER, {})
        shifted = {layer: replace(haystack[layer], shift=each.shift) for layer, each in together.items()}
        restored[ALL] = verdicts(again, haystack | shifted)
    told = chosen.told()
    return [
        {
            "restored_length": chosen.length,
            "restored_heads": told,
            **of_prompt("restored", restored, i),
            **(of_prompt("taken", taken, i) if taken and restored[NOTHING][i]["correct"] else {}),
        }
        for i in range(len(prompts))
    ]


def of_prompt(what: str, verdicts: Mapping[str, list[Score]], index: int) -> dict[str, Any]:
    """Return the columns of one prompt: each reading's verdict and nll."""
    nll = [each[index]["answer_nll"] for each in verdicts.values()]
    told = rounded(torch.tensor([math.nan if value is None else value for value in nll], dtype=torch.float64))
    return {
        what: {name: each[index]["correct"] for name, each in verdicts.items()},
        f"{what}_nll": dict(zip(verdicts, told, strict=True)),
    }


def edited_by(chosen: Chosen, tail: Tail, curves: Curves, give: bool) -> list[tuple[str, dict[int, Edit]]]:
    """Return the edits of each reading by its name: each axis, several at once, and the same of other heads."""
    readings = {axis.name: [axis] for axis in chosen.heads}
    readings |= {name: own for name, axes in JOINED.items() if (own := [axis for axis in axes if axis in chosen.heads])}
    return [
        (name + behind, edits_of([(axis, chosen.heads[axis], of[axis]) for axis in axes], tail, curves, give))
        for name, axes in readings.items()
        for behind, of in (("", chosen.heads), (OTHERS, chosen.others))
    ]


def edits_of(
    axes: Sequence[tuple[Axis, list[Head], list[Head]]], tail: Tail, curves: Curves, give: bool
) -> dict[int, Edit]:
    """Return the edits, by layer, that let heads have what others have: (axis, whose masses, who gets them)."""
    wanted: dict[int, list[Wanted]] = {}
    for axis, whose, heads in axes:
        if not heads:
            continue
        mass = curves.wanted(axis, whose[: len(heads)], tail)
        for layer in sorted({layer for layer, _ in heads}):
            here = [i for i, head in enumerate(heads) if head[0] == layer]
            own = Wanted([heads[i][1] for i in here], tail.keys[axis.span], mass[:, here])
            wanted.setdefault(layer, []).append(own)
    return {layer: Edit(tail.rows, shift=towards(each, give)) for layer, each in wanted.items()}


def nothing(scores: Tensor, seen: Seen) -> Tensor:
    """Move no score."""
    return torch.zeros_like(scores)


def sharpened(length: int, rows: Tensor | None = None) -> Callable[[Seen], Tensor]:
    """Return an Edit's factor: ln n / ln length in rows that see more keys than `length`, 1 in those that do not.

    rows: which ones, bool (batch, rows), where others stay as they are.
    """

    def factor(seen: Seen) -> Tensor:
        found = (seen.n.log() / math.log(length)).clamp(min=1)
        return found if rows is None else found.where(rows[:, None].to(found.device), 1)

    return factor
