"""Before its first number on a model: does what we read of it agree with what the unmodified model computes?

Model families differ in ways that no list keeps up with: decoders that leave rows out, code that asks for the name of the
attention implementation, caches of their own, terms added to the scores. So each way of reading is compared with the
model's own on a short input. What differs is refused in one line, or the way that agrees is taken and recorded.
"""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.interface import implementations, our_function, recording, restore
from ..mechanisms.layers import reads_on
from ..mechanisms.recorder import Recorded, Recorder
from ..models.causal import refuse_unless_causal
from ..position.rope import rope_that_turns
from .head import READS_MORE, logits_of, nll_of
from .nll import token_nll

SHORTEST = 64  # tokens of the input
# thresholds that a config can name: the input passes each that the run will pass, where that is affordable
THRESHOLD = re.compile(r"window|topk|top_k|chunk|block|original_max|local|stride|select|sparse|compress|sink")
WORK = 2e11  # parameters times tokens of one forward: some seconds on two cores
MAP_ENTRIES = 2**26  # numbers of all eager maps together
ROWS = 8
# what kernels may differ by, in nats a token, of the same sums in another order: at most, and in the mean. SmolLM2 read in
# parts differs by 2e-5 at most in float32; in bfloat16 by .26 at most and .045 in the mean over 600 tokens
NATS = {torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 1.0}
MEAN_NATS = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
# and in an attention weight, or an output against its layer's largest
SHARE = {torch.float32: 1e-3, torch.float16: 0.01, torch.bfloat16: 0.05}


# by model: what reading it in parts was found to differ by, for each setting (parts.py)
FOUND: WeakKeyDictionary[PreTrainedModel, dict[Any, str | None]] = WeakKeyDictionary()


@torch.inference_mode()
def preflight(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    mechanism: bool = False,
    masses: bool = False,
) -> dict[str, Any]:
    """Compare our ways of reading with the model's own, and return what was found, for the record.

    The model is in its setting. longest: tokens of the longest prompt to come. mechanism: one is on, swapped in or its own.
    masses: attention will be recorded. Returned: tokens, the length of the input, to which all of it is proved;
    head, what the head is read from (rows or full logits); and the largest differences found: kept_rows, with_a_token_more
    (the model's own rows when another token follows), own_decoding (its own generate) and our_attention in nats,
    recorded_output as a share of a layer's largest output, eager_maps as weights; called, the attention modules that ran.
    Raises UserError for a model whose attention our function, or whose weights our recorder, does not give as the model does.
    """
    ids = input_ids(model, tokenizer, longest)
    found: dict[str, Any] = {"tokens": ids.shape[1], "head": "rows"}
    READS_MORE.discard(model)
    FOUND.pop(model, None)
    refuse_unless_causal(model, ids)
    own = nll_of(model(input_ids=ids[:, :-1], use_cache=False).logits, ids[:, 1:])
    longer = nll_of(model(input_ids=ids, use_cache=False).logits[:, :-1], ids[:, 1:])
    if not torch.isfinite(own).all():  # nothing to compare; rows that are not finite say so
        return {
            **found,
            "finite": False,
            **(compare_attention(model, ids, masses, longest) if mechanism or masses else {}),
        }
    try:
        kept = token_nll(model, ids)
        last = nll_of(logits_of(model, ids[:, :-1], slice(-ROWS, None), use_cache=False)[0], ids[:, -ROWS:])
    except Exception:  # a decoder that hands over something else than hidden states
        kept, last = own + math.inf, own[:, -ROWS:]
    found["kept_rows"] = max(difference(own, kept), difference(own[:, -ROWS:], last))
    found["with_a_token_more"] = difference(own, longer)
    if not close(own, longer, model.dtype):
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s: its own rows change by %.3g nats when a token follows, so one forward's verdict can "
            "differ from greedy decoding's; --scoring generate decodes",
            type(model).__name__,
            found["with_a_token_more"],
        )
    found["own_decoding"] = compare_decoding(model, ids)
    if rope_that_turns(model) == "dynamic":
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s: dynamic RoPE turns by the length of each forward, so beyond the trained length one "
            "forward's verdict can differ from cached decoding's",
            type(model).__name__,
        )
    if not (close(own, kept, model.dtype) and close(own[:, -ROWS:], last, model.dtype)):
        READS_MORE.add(model)
        found["head"] = "full logits"
    if mechanism or masses:
        found |= compare_attention(model, ids, masses, longest)
    return found


def compare_decoding(model: PreTrainedModel, ids: Tensor) -> float | None:
    """Return the largest difference of two steps of a model's own `generate` from its forward, in nats; None where it cannot generate.

    Some hand their decoder other positions when they generate, or forget what a window of no layer holds. The forward's numbers
    stay the model's; a note says that greedy decoding's are others.
    """
    try:
        out = model.generate(
            ids, max_new_tokens=2, min_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        steps = torch.stack([each.float() for each in out.logits], 1).log_softmax(-1)
        own = model(input_ids=out.sequences, use_cache=False).logits[:, -3:-1].float().log_softmax(-1)
        chosen = out.sequences[:, -2:, None]
        one, other = steps.gather(2, chosen)[..., 0], own.gather(2, chosen)[..., 0]
    except Exception:  # generation fails in as many ways as there are models
        return None
    if not close(one, other, model.dtype):
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s: its own generate differs from its forward by %.3g nats, so forced verdicts, which are the "
            "forward's, can differ from greedy decoding's; --scoring generate decodes",
            type(model).__name__,
            difference(one, other),
        )
    return difference(one, other)


def compare_attention(model: PreTrainedModel, ids: Tensor, masses: bool, longest: int) -> dict[str, Any]:
    """Compare plain softmax through our function with the model's own, and recorded rows with outputs and eager maps."""
    found: dict[str, Any] = {}
    name = type(model).__name__
    own, ours = softmax_of_both(model, ids)
    found["our_attention"] = difference(own, ours)
    if not torch.isfinite(own).all():
        raise UserError(
            f"{name}: its logits are not finite on {ids.shape[1]} plain tokens, so mechanisms and masses cannot be proved"
        )
    if close(own, ours, model.dtype):
        with lowered(model, ids.shape[1], longest) as thresholds:
            found["thresholds_lowered"] = sorted(thresholds)
            if thresholds:
                with suppress(Exception):  # some shape hangs on one: then what lies beyond it is not proved
                    own, ours = softmax_of_both(model, ids)
                    found["our_attention"] = max(found["our_attention"], difference(own, ours))
    if not close(own, ours, model.dtype):
        raise UserError(
            f"{name}: softmax through our attention function differs from its own by {found['our_attention']:.3g} nats a "
            f"token (allowed {NATS[model.dtype]:g}) on {ids.shape[1]} tokens, so mechanisms and attention masses would be wrong; "
            "use the needle and loss probes without --attention"
        )
    check = OutputCheck(torch.linspace(0, ids.shape[1] - 1, 2 * ROWS).long()[None])
    with recording(model, check):
        model(input_ids=ids, use_cache=False)
    found["called"] = check.called
    if not masses:
        return found
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
def lowered(model: PreTrainedModel, proved: int, longest: int) -> Iterator[set[str]]:
    """Run a block with the thresholds that the run passes and `proved` tokens do not at half of that; yield their names.

    A large model cannot be read past its own thresholds for a proof, but past lower ones: what it does beyond them is the same.
    """
    owners = [vars(config) for config, _ in implementations(model)] + [vars(module) for module in model.modules()]
    kept = [
        (owner, name, value)
        for owner in owners
        for name, value in owner.items()
        if type(value) is int and proved <= value < longest and THRESHOLD.search(name)
    ]
    try:
        for owner, name, _ in kept:
            owner[name] = proved // 2
        yield {name for _, name, _ in kept}
    finally:
        for owner, name, value in kept:
            owner[name] = value


class OutputCheck(Recorder):
    """Keep, by layer, how far the recorded weights times the values are from what the layer made of them, as a share of its largest."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__(rows, away_from_output)

    def offer(self, layer: int, recorded: Recorded) -> None:
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
    parts = [part for mechanism in mechanisms_of(model).values() for part in (mechanism, mechanism.bias) if part]
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


def input_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> Tensor:
    """Return the input, int64 (1, tokens): drawn ids of a fixed seed, none of them special."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    plain = sorted(set(tokenizer.get_vocab().values()) - special) or [0]
    drawn = torch.randint(len(plain), (1, proof_length(model, longest)), generator=torch.Generator().manual_seed(0))
    return torch.tensor(plain)[drawn].to(reads_on(model))


def proof_length(model: PreTrainedModel, longest: int) -> int:
    """Return how many tokens are read: past every threshold that the config names and the run passes, as far as is affordable."""
    named = [value for value in thresholds(model.config.get_text_config().to_dict()) if value < longest]
    wanted = min(round(1.25 * max(named, default=0)) + 16, longest)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = len(list(model.modules())) * max(
        1, model.get_input_embeddings().weight.shape[-1]
    )  # at least the attention's
    while wanted > SHORTEST and wanted * (parameters + width * wanted) > WORK:
        wanted //= 2
    return max(SHORTEST, wanted)


def thresholds(config: Any, name: str = "") -> Iterator[int]:
    """Yield the whole numbers of a config, however deep, whose names say that something changes beyond them."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from thresholds(value, str(key))
    elif isinstance(config, list):
        for value in config:
            yield from thresholds(value, name)
    elif isinstance(config, int) and not isinstance(config, bool) and THRESHOLD.search(name):
        yield config


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest absolute difference; infinite where one of them is not finite."""
    away = float((one.float() - other.float().to(one.device)).abs().max())
    return away if math.isfinite(away) else math.inf


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether two readings of the same tokens, in nats, differ by no more than a dtype's roundings do."""
    away = (one.float() - other.float().to(one.device)).abs()
    return bool(away.max() <= NATS[dtype] and away.mean() <= MEAN_NATS[dtype])  # False for NaN
