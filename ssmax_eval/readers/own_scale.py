"""Does a model scale its queries by position itself, as Ministral 3 and Llama 4 do? A mechanism then stands on top of that."""

import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..mechanisms.attach import mechanisms_of
from ..mechanisms.interface import recording
from ..mechanisms.layers import layer_indices
from ..mechanisms.recorder import Recorded, Recorder
from ..mechanisms.scales import Softmax
from .attention_proof import mechanisms_off
from .thresholds import lowered
from .tolerance import SHARE


def scaled_twice(model: PreTrainedModel, ids: Tensor, longest: int) -> list[int]:
    """Return the layers, by index, that carry a mechanism and scale their queries by position themselves; a note names them.

    Of one token again and again every row has the same input, and its score of itself is at no distance, where RoPE changes nothing:
    a factor on such scores that is one for all heads is a scale. The last row stands where the longest prompt ends, for what is
    scaled from far on only.
    ids (1, tokens): the first is taken. longest: tokens of the longest prompt to come.
    """
    carried = [name for name, each in mechanisms_of(model).items() if not isinstance(each, Softmax)]
    if not carried:
        return []
    same = ids[:, :1].expand_as(ids)
    last = ids.shape[1] - 1
    places = torch.arange(last + 1, device=ids.device)[None]
    places[0, -1] = max(last, longest - 1)
    recorder = Recorder(torch.tensor([[0, last]]), scores_of_themselves)
    try:
        with mechanisms_off(model), lowered(model, last + 1, longest), recording(model, recorder):
            model(input_ids=same, position_ids=places, use_cache=False)
    except Exception:  # not all take positions, and some shape may hang on a threshold
        return []
    found = {layer for layer, (first, far) in recorder.kept.items() if is_scaled(first, far, SHARE[model.dtype])}
    indices = layer_indices(model)
    twice = sorted({indices[name] for name in carried} & found)
    if twice:
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s: %d of the %d layers that the mechanism is on scale their queries by position themselves, so its "
            "scale multiplies theirs; no setting takes theirs off",
            type(model).__name__,
            len(twice),
            len(carried),
        )
    return twice


def scores_of_themselves(recorded: Recorded) -> tuple[Tensor, Tensor]:
    """Return a layer's scores of the first and the last row with itself, (heads,) each; zeros where their inputs are not the same."""
    scores, values = recorded.scores, recorded.values
    if scores is None or away(values[..., 0, :], values[..., -1, :]) > SHARE[values.dtype]:
        return torch.zeros(1), torch.zeros(1)
    return scores[0, :, 0, 0], scores[0, :, 1, -1]


def is_scaled(first: Tensor, far: Tensor, share: float) -> bool:
    """Tell whether scores (heads,) far on are the first ones times one factor, which is not 1.

    Of each head another: weights between RoPE and the product, as Hunyuan's norms, which are no scale.
    """
    factor = (far @ first) / (first @ first).clamp(min=1e-30)
    return abs(float(factor) - 1) > share and away(far, factor * first) <= share and bool(first.any())


def away(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, as a share of the largest number."""
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))
