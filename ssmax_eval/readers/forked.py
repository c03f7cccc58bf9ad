"""Prompts that begin alike, read as branches of one trunk: what they share once, and of each prompt what is its own.

What is shared is found by comparing token ids, and how prompts are put together hangs on their tokens alone: not on which are
done, on the number of processes or on the batch size. So the same prompts give the same numbers, whoever reads them.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import Prompt
from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.interface import mechanism_named, recording
from ..mechanisms.layers import reads_on
from ..mechanisms.packed import Pack, Recorders, Segment, is_causal, packed
from ..mechanisms.recorder import Recorder
from ..models.encoders import is_encoder
from ..position.rope import rope_that_turns
from .answers import Score, Watch, mean_nll, score_rows
from .attention_proof import ROWS
from .head import logits_of, nll_of
from .preflight import FOUND
from .thresholds import lowered, proof_length
from .tolerance import close, difference

# rows of a forward, of several prompts; one that has more is read alone. More gain nothing
PACK_ROWS = {"cpu": 2048, "cuda": 65536, "mps": 8192}


class Trunk:
    """A beginning that prompts share. ids: its tokens, which are read when a first branch needs them."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.kept: dict[str, tuple[Tensor, Tensor]] | None = None

    def read(self, model: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
        """Return its keys and values, by the name of the attention module."""
        if self.kept is None:
            kept: dict[str, tuple[Tensor, Tensor]] = {}
            if self.ids:
                pack = Pack([Segment(0, len(self.ids), 0)], kept, keeps=True)
                read_pack(model, [self.ids], [0], pack, torch.tensor([len(self.ids) - 1]))
            self.kept = kept
        return self.kept


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


@torch.inference_mode()
def forked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    starts: list[int],
    trunk: Trunk,
    watches: Sequence[Watch] = (),
) -> list[Score]:
    """Score prompts, of any lengths, from where they leave their trunk: by one forward over their own parts.

    starts: how many of each prompt's first tokens the trunk has. watches: one for each prompt. Scores are those of
    answers.forced, to rounding.
    """
    texts = [prompt.ids[start:-1] for prompt, start in zip(prompts, starts, strict=True)]
    recorders = [
        Recorder(watch.rows - start, watch.reduce) for watch, start in zip(watches, starts, strict=bool(watches))
    ]
    segments = segments_of(texts, starts)
    pack = Pack(segments, trunk.read(model), recorders=recorders)
    rows = [torch.arange(s.stop - p.answer_length, s.stop) for s, p in zip(segments, prompts, strict=True)]
    logits, decoded = read_pack(model, texts, starts, pack, torch.cat(rows))
    parts = logits[0].split([prompt.answer_length for prompt in prompts])
    scores = [score_rows(tokenizer, prompt, part) for prompt, part in zip(prompts, parts, strict=True)]
    ids = torch.tensor([[token for text in texts for token in text]], device=reads_on(model))
    for i, watch in enumerate(watches):
        watch.kept = recorders[i].kept
        watch.nll = mean_nll(model, decoded, ids, [[at - starts[i] + segments[i].start for at in watch.positions[0]]])
    return scores


def segments_of(texts: list[list[int]], starts: list[int]) -> list[Segment]:
    """Return where texts lie in a pack."""
    ends = np.cumsum([0, *map(len, texts)]).tolist()
    return [Segment(*each) for each in zip(ends, ends[1:], starts, strict=False)]


def why_whole(model: PreTrainedModel) -> str | None:
    """Return why a model is read whole, as far as its build tells, weights or none."""
    if is_encoder(model):
        return "it is an encoder, which reads a text whole"
    kind = rope_that_turns(model)
    return None if kind is None else f"its RoPE ({kind}) turns by the length of each forward"


def unlike_forked(model: PreTrainedModel, longest: int) -> str | None:
    """Return why a model cannot be read in branches of a trunk; None if its numbers stay the same.

    longest: tokens of the longest prompt to come.
    """
    if (why := why_whole(model)) is not None:
        return why
    own = mechanism_named(model.config.get_text_config()._attn_implementation)
    if own != "softmax":
        return f"it attends with a function of a user's own ({own})"
    setting = tuple((name, type(each).__name__) for name, each in mechanisms_of(model).items())
    known = FOUND.setdefault(model, {})
    key = ("forked", proof_length(model, longest), longest, setting, model.dtype)
    if key not in known:
        known[key] = compare_forked(model, key[1], longest)
    return known[key]


@torch.inference_mode()
def compare_forked(model: PreTrainedModel, length: int, longest: int) -> str | None:
    """Return what differs when three texts of `length` tokens are read as branches of a trunk; None for nothing."""
    try:
        if not hides_the_future_alone(model, longest):
            return "its mask hides more than what comes later"
        pairs = whole_and_forked(model, length)
    except UserError as error:  # a mechanism that reads whole sequences only says so
        return str(error)
    except Exception as error:  # a model may take no positions, in as many ways as there are models
        return f"it cannot be read in branches ({type(error).__name__})"
    with lowered(model, length, longest) as thresholds:
        try:
            pairs += whole_and_forked(model, length) if thresholds else []
        except Exception:  # some shape hangs on a threshold
            return f"what lies beyond its {', '.join(sorted(thresholds))} could not be proved"
    if all(close(*pair, model.dtype) for pair in pairs):
        return None
    away = max(difference(*pair) for pair in pairs)
    return f"its numbers in branches differ from the whole forward's by {away:.3g} nats a token on {length} tokens"


def hides_the_future_alone(model: PreTrainedModel, longest: int) -> bool:
    """Tell whether all masks that a model makes are causal, with a window or none, for as many tokens as are to come."""
    pack = Pack([Segment(0, ROWS, 0)], {}, keeps=True)
    read_pack(model, [[0] * ROWS], [0], pack, torch.tensor([ROWS - 1]))
    return all(is_causal(mask, longest) for mask in pack.masks)


def whole_and_forked(model: PreTrainedModel, length: int) -> list[tuple[Tensor, Tensor]]:
    """Return, of each of three texts, some tokens' nll by a whole forward, and as a branch: of its first and its last rows."""
    generator = torch.Generator().manual_seed(0)
    starts = [length // 4, length // 2, length // 2]
    drawn = torch.randint(len(model.get_input_embeddings().weight), (len(starts), length), generator=generator)
    for i, start in enumerate(starts):
        drawn[i, :start] = drawn[-1, :start]
    texts = [ids[start:-1].tolist() for ids, start in zip(drawn, starts, strict=True)]
    trunk = Trunk(drawn[-1, : max(starts)].tolist())
    segments = segments_of(texts, starts)
    chosen = [torch.tensor([*range(ROWS), *range(len(text) - ROWS, len(text))]) for text in texts]
    rows = torch.cat([each + segment.start for each, segment in zip(chosen, segments, strict=True)])
    logits, _ = read_pack(model, texts, starts, Pack(segments, trunk.read(model)), rows)
    pairs = []
    for i, (own, start) in enumerate(zip(chosen, starts, strict=True)):
        at = (own + start).to(reads_on(model))
        ids = drawn[i : i + 1].to(reads_on(model))
        whole, _ = logits_of(model, ids[:, :-1], at, use_cache=False)
        targets = ids[:, at + 1]
        one, other = nll_of(whole, targets), nll_of(logits[:, 2 * ROWS * i : 2 * ROWS * (i + 1)], targets)
        pairs += [
            *zip(one.split(ROWS, 1), other.split(ROWS, 1), strict=True)
        ]  # so that right first rows hide no last ones
    return pairs
