"""Can a model be read in branches of a trunk? Compared once with the whole forward on a short input, then done or left."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.interface import mechanism_named
from ..mechanisms.layers import reads_on
from ..mechanisms.packed import Pack, Segment, is_causal
from ..models.encoders import is_encoder
from ..position.rope import rope_that_turns
from .again import Again
from .attention_proof import ROWS
from .forked import Trunk, cached, read_pack, segments_of
from .head import logits_of, nll_of
from .preflight import FOUND
from .thresholds import lowered, proof_length
from .tolerance import close, difference


def why_whole(model: PreTrainedModel) -> str | None:
    """Return why a model is read whole, as far as its build tells, weights or none."""
    if is_encoder(model):
        return "it is an encoder, which reads a text whole"
    kind = rope_that_turns(model)
    return None if kind is None else f"its RoPE ({kind}) turns by the length of each forward"


def unlike_forked(model: PreTrainedModel, longest: int, again: bool = False) -> str | None:
    """Return why a model cannot be read in branches of a trunk; None if its numbers stay the same.

    longest: tokens of the longest prompt to come. again: whether rows are read again over what was read so.
    """
    if (why := why_whole(model)) is not None:
        return why
    own = mechanism_named(model.config.get_text_config()._attn_implementation)
    if own != "softmax":
        return f"it attends with a function of a user's own ({own})"
    setting = tuple((name, type(each).__name__) for name, each in mechanisms_of(model).items())
    known = FOUND.setdefault(model, {})
    key = ("forked", proof_length(model, longest), longest, setting, model.dtype, again)
    if key not in known:
        known[key] = compare_forked(model, key[1], longest, again)
    return known[key]


@torch.inference_mode()
def compare_forked(model: PreTrainedModel, length: int, longest: int, again: bool = False) -> str | None:
    """Return what differs when three texts of `length` tokens are read as branches of a trunk; None for nothing."""
    try:
        if not hides_the_future_alone(model, longest):
            return "its mask hides more than what comes later"
        pairs = whole_and_forked(model, length, again)
    except UserError as error:  # a mechanism that reads whole sequences only says so
        return str(error)
    except Exception as error:  # a model may take no positions, in as many ways as there are models
        return f"it cannot be read in branches ({type(error).__name__})"
    with lowered(model, length, longest) as thresholds:
        try:
            pairs += whole_and_forked(model, length, again) if thresholds else []
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


def whole_and_forked(model: PreTrainedModel, length: int, again: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Return, of each of three texts, some tokens' nll by a whole forward, and as a branch: of its first and its last rows.

    again: of the last ones also read again over a cache that was read so.
    """
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
    if again:
        stop = length - 1 - ROWS
        last = Again(
            model, drawn[:, :-1].to(reads_on(model)), stop, cache=cached(model, drawn.tolist(), starts, stop, trunk)
        )
        read_again = last.logits(ROWS)
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
        if again:
            pairs.append((pairs[-1][0], nll_of(read_again[i : i + 1], targets[:, ROWS:])))
    return pairs
