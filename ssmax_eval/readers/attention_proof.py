"""Is softmax through our function the model's own, and are recorded weights those of its layers?"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.implementation import implementations, our_function, restore
from ..mechanisms.interface import recording
from ..mechanisms.layers import attention_modules
from ..mechanisms.recorder import Recorded, Recorder
from .head import nll_of
from .thresholds import SHORTEST, lowered
from .tolerance import NATS, SHARE, close, difference

MAP_ENTRIES = 2**26  # numbers of all eager maps together
ROWS = 8


def compare_attention(model: PreTrainedModel, ids: Tensor, masses: bool, longest: int) -> dict[str, Any]:
    """Compare plain softmax through our function with the model's own, and recorded rows with outputs and eager maps."""
    found: dict[str, Any] = {}
    name = type(model).__name__
    carried = mechanisms_of(model).values()
    if masses and carried and not any(mechanism.has_map for mechanism in carried):
        raise UserError(
            f"attention {next(iter(carried)).name}: attention masses are not applicable: it weighs no keys; use the needle and loss probes"
        )
    own, ours = softmax_of_both(model, ids)
    found["our_attention"] = difference(own, ours)
    if not torch.isfinite(own).all():
        raise UserError(
            f"{name}: its logits are not finite on {ids.shape[1]} plain tokens, so mechanisms and masses cannot be proved"
        )
    if close(own, ours, model.dtype):
        with lowered(model, ids.shape[1], longest) as thresholds:
            found["thresholds_lowered"] = sorted(thresholds)
            try:
                if thresholds:
                    own, ours = softmax_of_both(model, ids)
                    found["our_attention"] = max(found["our_attention"], difference(own, ours))
            except UserError:  # refused beyond a threshold
                raise
            except Exception:  # some shape hangs on one: then what lies beyond it is not proved
                logging.getLogger(__name__).debug("%s beyond %s is not proved", name, thresholds)
    if not close(own, ours, model.dtype):
        raise UserError(
            f"{name}: softmax through our attention function differs from its own by {found['our_attention']:.3g} nats a "
            f"token (allowed {NATS[model.dtype]:g}) on {ids.shape[1]} tokens, so mechanisms and attention masses would be wrong; "
            "use the needle and loss probes without --attention"
        )
    check = OutputCheck(torch.linspace(0, ids.shape[1] - 1, 2 * ROWS).long()[None])
    with recording(model, check), running(attention_modules(model)) as ran:
        model(input_ids=ids, use_cache=False)
    found["called"] = check.called
    if unheard := [each for each in ran if each not in check.called]:
        raise UserError(
            f"{name}: {unheard[0]} attends by code of its own, past transformers' attention interface, so its attention cannot be "
            "exchanged, edited or recorded; use the needle and loss probes without --attention"
        )
    if not masses:
        return found
    if other := check.keys - {ids.shape[1]}:
        raise UserError(
            f"{name}: its layers see {max(other)} keys where it is given {ids.shape[1]} tokens, so nothing tells which keys are "
            "the needle's; use the needle and loss probes"
        )
    found["recorded_output"] = max(check.kept.values(), default=0.0)
    found["eager_maps"] = compare_maps(model, ids)
    for what, unit in (("recorded_output", "of its largest output"), ("eager_maps", "in a weight")):
        if found[what] is not None and not found[what] <= SHARE[model.dtype]:
            raise UserError(
                f"{name}: the attention that we record differs from what its layers compute by {found[what]:.3g} {unit} "
                f"(allowed {SHARE[model.dtype]:g}), so attention masses would be wrong; use the needle and loss probes"
            )
    return found


def softmax_of_both(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's nll under plain softmax: on the model's own attention implementation, and through our function."""
    with mechanisms_off(model):
        with own_attention(model):
            own = nll_of(model(input_ids=ids, use_cache=False).logits[:, :-1], ids[:, 1:])
        with our_function(model):
            return own, nll_of(model(input_ids=ids, use_cache=False).logits[:, :-1], ids[:, 1:])


@contextmanager
def running(modules: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Run a block and yield a list that gets the names of the modules that run in it, as they do."""
    ran: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, module in modules.items()
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


class OutputCheck(Recorder):
    """Keep, by layer, how far the recorded weights times the values are from what the layer made of them, as a share of its largest.

    keys: how many keys layers see.
    """

    def __init__(self, rows: Tensor) -> None:
        super().__init__(rows, away_from_output)
        self.keys: set[int] = set()

    def offer(self, layer: int, recorded: Recorded) -> None:
        self.keys.add(recorded.seen.forward.keys)
        self.kept[layer] = max(self.reduce(recorded), self.kept.get(layer, 0.0))


def away_from_output(recorded: Recorded) -> float:
    """Return how far weights times values are from the output, as a share of its largest."""
    weights, values, mixed = recorded.weights, recorded.values.float(), recorded.mixed
    batch, maps, rows, keys = weights.shape
    ours = (weights.reshape(batch, values.shape[1], -1, keys) @ values).view(batch, maps, rows, -1)
    return float((ours - mixed).abs().max() / mixed.abs().max().clamp(min=1e-30))


def compare_maps(model: PreTrainedModel, ids: Tensor) -> float | None:
    """Return the largest difference of recorded weights from the model's own eager maps; None where it gives none."""
    layers = len(mechanisms_of(model)) or int(getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    heads = int(getattr(model.config.get_text_config(), "num_attention_heads", 1) or 1)
    ids = ids[:, : max(SHORTEST, math.isqrt(MAP_ENTRIES // (layers * heads)))]
    rows = torch.arange(ids.shape[1] - ROWS, ids.shape[1])[None]
    with mechanisms_off(model):
        recorder = Recorder(rows, lambda recorded: recorded.weights)
        with recording(model, recorder):
            model(input_ids=ids, use_cache=False)
        maps = eager_maps(model, ids)
    if len(maps) != len(recorder.kept):
        return None
    kept = recorder.kept.values()
    pairs = [(own[:, :, -ROWS:, : ours.shape[-1]].float(), ours) for own, ours in zip(maps, kept, strict=True)]
    if model.dtype != torch.float32:
        pairs = pairs[:1]  # eager and sdpa round otherwise, and deeper layers would be compared on other inputs
    return max((float((own - ours).abs().max()) for own, ours in pairs if own.shape == ours.shape), default=None)


def eager_maps(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """Return the attention maps that a model gives itself under its eager implementation; [] where it gives none."""
    before = implementations(model)
    try:
        model.set_attn_implementation("eager")
        found = model(input_ids=ids, use_cache=False, output_attentions=True).attentions or ()
        return [each for each in found if isinstance(each, Tensor)]
    except Exception:  # a model may lack an eager implementation, in any way it likes
        return []
    finally:
        restore(before)


@contextmanager
def mechanisms_off(model: PreTrainedModel) -> Iterator[None]:
    """Let the mechanisms and biases of a model do nothing while the block runs: plain softmax."""
    parts = [
        part for mechanism in mechanisms_of(model).values() for part in (mechanism, mechanism.position_bias) if part
    ]
    switched = [part for part in parts if part.active]
    try:
        for part in switched:
            part.active = False
        yield
    finally:
        for part in switched:
            part.active = True


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Run a block on the attention implementation that a model had before a mechanism was put on it."""
    now = implementations(model)
    try:
        restore(vars(model).get("attention_before", []))
        yield
    finally:
        restore(now)
