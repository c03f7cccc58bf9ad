"""Can a model be read in branches of a trunk? Compared once with the whole forward on a short input, then done or left."""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.implementation import mechanism_named
from ..mechanisms.layers import reads_on
from ..mechanisms.packed import Pack, Segment, is_causal
from ..models.encoders import is_encoder
from ..position.rotary import rope_that_turns
from .again import Again
from .attention_proof import ROWS
from .forked import Trunk, read_pack
from .head import logits_of, nll_of
from .preflight import FOUND
from .reader import AGAIN, WEIGHTS
from .snapshots import LEAST, Trail
from .thresholds import lowered, proof_length
from .tolerance import close, difference

# of its tokens, the starts of its branches, and whether windowed layers keep all keys
MakeTrunk = Callable[[list[int], list[int], bool], Trunk]


class Forking(NamedTuple):
    """How prompts that begin alike are read: forked, unless `why` says what keeps them from it; by snapshots, or else in packs."""

    why: str | None
    by_snapshots: bool = False

    def __str__(self) -> str:
        return self.why or ("as whole, by snapshots" if self.by_snapshots else "as whole")


def forking(model: PreTrainedModel, longest: int, needs: frozenset[str] = frozenset()) -> Forking:
    """Return how a model reads prompts that begin alike, so that its numbers stay the same.

    longest: tokens of the longest prompt to come. needs: what a reader is asked for.
    """
    again = AGAIN in needs
    why = unlike_forked(model, longest, again)
    if why is None or why == why_whole(model):
        return Forking(why)
    if longest < (least := LEAST[reads_on(model).type]):
        return Forking(f"{why}; by snapshots: prompts of fewer than {least} tokens are read sooner whole")
    other = unlike_forked(model, longest, again, by_snapshots=True, keep_all=bool(needs & {AGAIN, WEIGHTS}))
    return Forking(None, True) if other is None else Forking(f"{why}; by snapshots: {other}")


def why_whole(model: PreTrainedModel) -> str | None:
    """Return why a model is read whole, as far as its build tells, weights or none."""
    if is_encoder(model):
        return "it is an encoder, which reads a text whole"
    if (kind := rope_that_turns(model)) is not None:
        return f"its RoPE ({kind}) turns by the length of each forward"
    own = mechanism_named(model.config.get_text_config()._attn_implementation)
    return None if own == "softmax" else f"it attends with a function of a user's own ({own})"


def unlike_forked(
    model: PreTrainedModel, longest: int, again: bool = False, by_snapshots: bool = False, keep_all: bool = False
) -> str | None:
    """Return why a model cannot be read in branches of a trunk; None if its numbers stay the same.

    longest: tokens of the longest prompt to come. again: whether rows are read again over what was read so. by_snapshots: whether
    branches are read from snapshots, rather than in packs. keep_all: whether these hold every key of windowed layers.
    """
    if (why := why_whole(model)) is not None:
        return why
    setting = tuple((name, type(each).__name__) for name, each in mechanisms_of(model).items())
    known = FOUND.setdefault(model, {})
    key = ("forked", proof_length(model, longest), longest, setting, model.dtype, again, by_snapshots, keep_all)
    if key not in known:
        make = trail if by_snapshots else pack_trunk
        known[key] = compare_forked(model, key[1], longest, make, again, keep_all)
    return known[key]


@torch.inference_mode()
def compare_forked(
    model: PreTrainedModel, length: int, longest: int, make: MakeTrunk, again: bool = False, keep_all: bool = False
) -> str | None:
    """Return what differs when three texts of `length` tokens are read as branches of a trunk; None for nothing.

    make: returns the trunk; again, keep_all: as unlike_forked's.
    """
    try:
        if not hides_the_future_alone(model, longest):
            return "its mask hides more than what comes later"
        pairs = whole_and_forked(model, length, make, again, keep_all)
    except UserError as error:  # a mechanism that reads whole sequences only says so
        return str(error)
    except Exception as error:  # a model may take no positions, in as many ways as there are models
        return f"it cannot be read in branches ({type(error).__name__})"
    with lowered(model, length, longest) as thresholds:
        try:
            pairs += whole_and_forked(model, length, make, again, keep_all) if thresholds else []
        except Exception:  # some shape hangs on a threshold
            return f"what lies beyond its {', '.join(sorted(thresholds))} could not be proved"
    if all(close(*pair, model.dtype) for pair in pairs):
        return None
    away = max(difference(*pair) for pair in pairs)
    return f"its numbers in branches differ from the whole forward's by {away:.3g} nats a token on {length} tokens"


def hides_the_future_alone(model: PreTrainedModel, longest: int) -> bool:
    """Tell whether all masks that a model makes are causal, with a window or none, for as many tokens as are to come."""
    pack = Pack([Segment(0, ROWS, 0)], {}, keeps=True)
    # not all make theirs by the interface, nor can be read so: what they made till then is judged
    with suppress(Exception):
        read_pack(model, [[0] * ROWS], [0], pack, torch.tensor([ROWS - 1]))
    return all(is_causal(mask, longest) for mask in pack.masks)


def pack_trunk(ids: list[int], starts: list[int], keep_all: bool) -> Trunk:
    return Trunk(ids)


def trail(ids: list[int], starts: list[int], keep_all: bool) -> Trunk:
    # with parts of one token, and of fewer than a convolution reaches, at the beginning and further on: often read by other code
    further = starts[0]
    return Trail(ids, [1, 2, 4, 7, *starts, further + 1, further + 3, further + 6], keep_all)


def whole_and_forked(
    model: PreTrainedModel, length: int, make: MakeTrunk, again: bool = False, keep_all: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Return, of each of three texts, some tokens' nll by a whole forward, and as a branch: of its first and its last rows.

    again: of the last ones also read again over a cache that was read so.
    """
    generator = torch.Generator().manual_seed(0)
    # the last one behind a window that was full before, wherever windows are shorter than the input
    starts = [length // 4, length // 2, length - 1 - 2 * ROWS]
    drawn = torch.randint(len(model.get_input_embeddings().weight), (len(starts), length), generator=generator)
    for i, start in enumerate(starts):
        drawn[i, :start] = drawn[-1, :start]
    texts = [ids[start:-1].tolist() for ids, start in zip(drawn, starts, strict=True)]
    trunk = make(drawn[-1, : max(starts)].tolist(), starts, keep_all)
    chosen = [torch.tensor([*range(ROWS), *range(len(text) - ROWS, len(text))]) for text in texts]
    logits = trunk.logits(model, texts, starts, chosen)
    if again:
        stop = length - 1 - ROWS
        at_once = min(trunk.caches, len(starts))
        parts = []
        for own, where in zip(drawn.split(at_once), torch.tensor(starts).split(at_once), strict=True):
            cache = trunk.cache(model, own.tolist(), where.tolist(), stop)
            parts.append(Again(model, own[:, :-1].to(reads_on(model)), stop, cache=cache).logits(ROWS))
        read_again = torch.cat(parts)
    pairs = []
    for i, (own, start, found) in enumerate(zip(chosen, starts, logits, strict=True)):
        at = (own + start).to(reads_on(model))
        ids = drawn[i : i + 1].to(reads_on(model))
        whole, _ = logits_of(model, ids[:, :-1], at, use_cache=False)
        targets = ids[:, at + 1]
        one, other = nll_of(whole, targets), nll_of(found, targets)
        pairs += [
            *zip(one.split(ROWS, 1), other.split(ROWS, 1), strict=True)
        ]  # so that right first rows hide no last ones
        if again:
            pairs.append((pairs[-1][0], nll_of(read_again[i : i + 1], targets[:, ROWS:])))
    return pairs
