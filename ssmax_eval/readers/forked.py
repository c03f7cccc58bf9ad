"""Prompts that begin alike, read as branches of one trunk: what they share once, and of each prompt what is its own.

What is shared is found by comparing token ids, and how prompts are put together hangs on their tokens alone: not on which are
done, on the number of processes or on the batch size. So the same prompts give the same numbers, whoever reads them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import Prompt
from ..mechanisms.behind import Pair
from ..mechanisms.edit import Edit
from ..mechanisms.interface import edited, recording
from ..mechanisms.layers import attention_modules, reads_on
from ..mechanisms.packed import Pack, Recorders, Segment, packed
from ..mechanisms.recorder import Recorder
from .answers import Score, Watch, mean_nll, score_rows
from .head import logits_of

# rows of a forward, of several prompts; one that has more is read alone. More gain nothing
PACK_ROWS = {"cpu": 2048, "cuda": 65536, "mps": 8192}


class Trunk:
    """A beginning that prompts share, and how they are read from where they leave it: here several by one forward.

    ids: its tokens, which are read when a first branch needs them. edits: by layer, under which all its rows are read, and what
    branches have before rows that are read again.
    """

    caches = 2**31  # of so many texts at once

    def __init__(self, ids: Sequence[int], edits: Mapping[int, Edit] | None = None) -> None:
        self.ids, self.edits = list(ids), edits
        self.kept: dict[str, Pair] | None = None
        self.other: Trunk | None = None  # the same under edits

    def read(self, model: PreTrainedModel) -> dict[str, Pair]:
        """Return its keys and values, by the name of the attention module."""
        if self.kept is None:
            pack = Pack([Segment(0, len(self.ids), 0)], {}, keeps=True)
            if self.ids:
                with edited(model, self.edits) if self.edits else nullcontext():
                    read_pack(model, [self.ids], [0], pack, torch.tensor([len(self.ids) - 1]))
            self.kept = pack.kept
        return self.kept

    def under(self, edits: Mapping[int, Edit]) -> "Trunk":
        """Return the same beginning under edits; these are the same whenever it is asked for."""
        if self.other is None:
            self.other = Trunk(self.ids, edits)
        return self.other

    def forget(self) -> None:
        """Give its memory back."""
        self.kept = self.other = None

    def logits(
        self, model: PreTrainedModel, texts: list[list[int]], starts: list[int], rows: list[Tensor]
    ) -> list[Tensor]:
        """Return the logits (1, chosen, vocabulary) of some rows of each text; texts have the tokens from their starts on."""
        segments = segments_of(texts, starts)
        chosen = torch.cat([each + segment.start for each, segment in zip(rows, segments, strict=True)])
        logits, _ = read_pack(model, texts, starts, Pack(segments, self.read(model)), chosen)
        return list(logits.split([len(each) for each in rows], 1))

    @torch.inference_mode()
    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: list[Prompt],
        starts: list[int],
        watches: Sequence[Watch] = (),
    ) -> list[Score]:
        """Score prompts, of any lengths, from where they leave the trunk: only their own parts are read.

        starts: how many of each prompt's first tokens the trunk has. watches: one for each prompt. Scores are those of
        answers.forced, to rounding.
        """
        texts = [prompt.ids[start:-1] for prompt, start in zip(prompts, starts, strict=True)]
        recorders = [
            Recorder(watch.rows - start, watch.reduce) for watch, start in zip(watches, starts, strict=bool(watches))
        ]
        segments = segments_of(texts, starts)
        pack = Pack(segments, self.read(model), recorders=recorders)
        rows = [torch.arange(s.stop - p.answer_length, s.stop) for s, p in zip(segments, prompts, strict=True)]
        logits, decoded = read_pack(model, texts, starts, pack, torch.cat(rows))
        parts = logits[0].split([prompt.answer_length for prompt in prompts])
        scores = [score_rows(tokenizer, prompt, part) for prompt, part in zip(prompts, parts, strict=True)]
        ids = torch.tensor([[token for text in texts for token in text]], device=reads_on(model))
        for i, watch in enumerate(watches):
            watch.kept = recorders[i].kept
            watch.nll = mean_nll(
                model, decoded, ids, [[at - starts[i] + segments[i].start for at in watch.positions[0]]]
            )
        return scores

    @torch.inference_mode()
    def cache(self, model: PreTrainedModel, ids: list[list[int]], starts: list[int], stop: int) -> DynamicCache:
        """Return the KV cache of the first `stop` tokens of texts, each read from where it leaves the trunk, under its edits."""
        # each reads a token at least: one that shares more reads its last one again
        starts = [min(start, stop - 1) for start in starts]
        own = [text[start:stop] for text, start in zip(ids, starts, strict=True)]
        front, segments = self.read(model), segments_of(own, starts)
        pack = Pack(segments, front, keeps=True)
        with edited(model, self.edits) if self.edits else nullcontext():
            read_pack(model, own, starts, pack, torch.tensor([0]))
        cache = DynamicCache()  # of whole layers: those with a window keep what lies behind it
        for name, module in attention_modules(model).items():
            pair = [
                torch.cat(
                    [
                        torch.cat([*([front[name][i][:, :, :before]] if before else []), each[:, :, start:stop]], 2)
                        for start, stop, before in segments
                    ]
                )
                for i, each in enumerate(pack.kept[name])
            ]
            cache.update(*pair, module.layer_idx)
        return cache


def read_pack(
    model: PreTrainedModel, texts: list[list[int]], starts: list[int], pack: Pack, rows: Tensor
) -> tuple[Tensor, Any]:
    """Return the logits (1, chosen, vocabulary) of some of a pack's rows, and the decoder's whole output, or all logits.

    texts: of each segment the tokens that are its own; starts: their positions.
    """
    device = reads_on(model)
    ids = torch.tensor([[token for text in texts for token in text]], device=device)
    places = [torch.arange(start, start + len(text)) for text, start in zip(texts, starts, strict=True)]
    with (
        recording(model, Recorders(pack)) if pack.recorders else nullcontext(),
        packed(model, pack),
    ):
        return logits_of(model, ids, rows.to(device), position_ids=torch.cat(places)[None].to(device), use_cache=False)


@dataclass(frozen=True)
class Branch:
    """A prompt, by its index, and how many of its first tokens the trunk has."""

    index: int
    start: int


@dataclass(frozen=True)
class Walk:
    """A trunk and its branches, in the order of their prompts."""

    trunk: Trunk
    branches: list[Branch]

    def packs(self, prompts: Sequence[Prompt], rows: int) -> Iterator[list[Branch]]:
        """Yield the branches in packs of at most so many rows together, or one that has more."""
        pack: list[Branch] = []
        total = 0
        for branch in self.branches:
            own = len(prompts[branch.index].ids) - 1 - branch.start
            if pack and total + own > rows:
                yield pack
                pack, total = [], 0
            pack.append(branch)
            total += own
        yield pack

    def in_order(self) -> Iterator[list[Branch]]:
        """Yield each branch alone, in the order in which they leave the trunk."""
        yield from ([branch] for branch in sorted(self.branches, key=lambda branch: branch.start))

    def batches(self, prompts: Sequence[Prompt], tokens: int) -> Iterator[list[Branch]]:
        """Yield the branches of equal length, those without a needle apart, in batches of at most so many tokens or one prompt."""
        alike: dict[tuple[int, bool], list[Branch]] = {}
        for branch in self.branches:
            prompt = prompts[branch.index]
            alike.setdefault((len(prompt.ids), prompt.needle_start is None), []).append(branch)
        for (length, _), same in alike.items():
            size = max(1, tokens // length)
            yield from (same[start : start + size] for start in range(0, len(same), size))


def walks(prompts: Sequence[Prompt], latest: Sequence[int]) -> list[Walk]:
    """Return how the prompts of a trial are read: behind one trunk, or one for each length, whichever reads fewer tokens.

    latest: of each prompt, where its own part begins at the latest, which holds all rows that are looked at.
    """
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.ids), []).append(i)
    together = [walk_of(prompts, latest, list(range(len(prompts))))]
    apart = [walk_of(prompts, latest, members) for members in by_length.values()]
    return min(together, apart, key=lambda found: sum(tokens_of(walk, prompts) for walk in found))


def tokens_of(walk: Walk, prompts: Sequence[Prompt]) -> int:
    """Return how many tokens are read, the last one of each answer left out."""
    return len(walk.trunk.ids) + sum(len(prompts[each.index].ids) - 1 - each.start for each in walk.branches)


def walk_of(prompts: Sequence[Prompt], latest: Sequence[int], members: list[int]) -> Walk:
    """Return the walk of some prompts whose trunk, the beginning of one of the longest, spares the most tokens."""
    length = max(len(prompts[i].ids) for i in members)
    ids = np.array([prompts[i].ids + [-1] * (length - len(prompts[i].ids)) for i in members])
    ends = np.array([latest[i] for i in members])
    best: tuple[int, list[int], np.ndarray[Any, Any]] | None = None
    for at, i in enumerate(members):
        if len(prompts[i].ids) < length:
            continue
        differs = ids != ids[at]
        starts = np.minimum(np.where(differs.any(1), differs.argmax(1), length), ends)
        others = np.delete(starts, at)
        end = int(others.max(initial=0))
        starts[at] = min(end, ends[at])
        spared = int(starts.sum()) - end
        if best is None or spared > best[0]:
            best = spared, prompts[i].ids[:end], starts
    assert best is not None
    spared, trunk, found = best
    if spared <= 0:
        trunk, found = [], np.zeros_like(found)
    return Walk(Trunk(trunk), [Branch(i, int(start)) for i, start in zip(members, found, strict=True)])


def segments_of(texts: list[list[int]], starts: list[int]) -> list[Segment]:
    """Return where texts lie in a pack."""
    ends = np.cumsum([0, *map(len, texts)]).tolist()
    return [Segment(*each) for each in zip(ends, ends[1:], starts, strict=False)]
