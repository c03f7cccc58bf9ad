"""Put mechanisms on a model's layers, take them off, and tell what stands there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from ..position.bias import Bias, NoPosition, biases
from . import interface as interface  # so that the name that configs get is known, in whatever process opens them
from .files import source_of
from .implementation import (
    IMPLEMENTATION,
    OURS,
    attend_with,
    implementations,
    native_mechanism,
    refuse_unsupported,
    restore,
)
from .layers import WINDOW_KEYS, attends_both_ways, attention_modules, computes_on, layer_indices, layer_of, layers
from .mechanism import Mechanism, shared_parameters
from .projections import changes, hook, projections, unhook
from .scales import Softmax
from .spelling import Attention
from .train_length import train_length_of

AS_IT_IS = "as it is"  # of a bias: the model's own


@dataclass(frozen=True)
class Attached:
    """What stands on a model's layers: the mechanism's spelling (None: nobody can look), L, and the modules that have it and not.

    scaled_layers, unscaled_layers: names of attention modules; windowed ones are left as they are. scaled_indices and
    unscaled_indices: where in the decoder they are, from 0.
    """

    attention: str | None
    train_length: int | None
    scaled_layers: list[str] = field(default_factory=list)
    unscaled_layers: list[str] = field(default_factory=list)
    scaled_indices: list[int] = field(default_factory=list)
    unscaled_indices: list[int] = field(default_factory=list)


def attached(model: PreTrainedModel, spelling: str, train_length: int | None) -> Attached:
    """Describe what stands on a model's layers; softmax that only carries a bias is no mechanism."""
    indices = layer_indices(model) if attention_modules(model) else {}
    scaled = [name for name, each in mechanisms_of(model).items() if not isinstance(each, Softmax)]
    unscaled = [name for name in indices if name not in scaled] if scaled else []
    return Attached(
        spelling,
        train_length,
        scaled,
        unscaled,
        [indices[name] for name in scaled],
        [indices[name] for name in unscaled],
    )


def own_bias(model: PreTrainedModel) -> str | None:
    """Return the name of the bias that a model's config names; None for none."""
    named = own_position(model)
    return None if named == NoPosition.name else named


def own_position(model: PreTrainedModel) -> str | None:
    """Return the position that a model's config names because its blocks cannot: a bias, or `nope`; None for neither."""
    return (getattr(model.config, "ssmax", None) or {}).get("position")


def attach(
    model: PreTrainedModel,
    attention: str | Attention = "softmax",
    longest: int | None = None,
    bias: str | None = AS_IT_IS,
    seed: int = 0,
    lengths: tuple[int, ...] = (),
) -> Attached:
    """Put a mechanism (`NAME[:key=value,...]`) on every full-attention layer, replacing what was there, and return what was done.

    Learned parameters get their first values. Softmax leaves the model on its own attention implementation. longest: tokens
    of the longest context to come: a window that holds them is none; None goes by the model's positions. bias: the name of a
    position bias (`alibi`) to add to the scores of every layer, None for none; the model's own stays unless one is given.
    seed: of first values that are drawn. lengths: of an encoder's training, () for the training length alone. Raises UserError
    for models off the interface, unknown mechanisms or options, an unknown training length, models all of whose layers are
    windowed, and a mechanism on an encoder that has to be causal.
    """
    asked = Attention.of(attention)
    if bias == AS_IT_IS:
        bias = own_position(model)
    trained_at = train_length_of(model.config)
    train_length = trained_at if asked.train_length is None else asked.train_length
    if asked.is_softmax and bias is None:
        detach(model)
        if native_mechanism(model) != "softmax":  # its own attention is another: sdpa's softmax, by way of our function
            refuse_unsupported(model)
            vars(model)["attention_before"] = implementations(model)
            attend_with(model, IMPLEMENTATION)
        return Attached(str(asked), train_length)
    refuse_unsupported(model)
    if (asked.mechanism.causal_only or asked.mechanism.carries) and attends_both_ways(model):
        raise UserError(
            f"attention {asked.mechanism.name}: it is defined for rows that see nothing after them, and every row of "
            f"{type(model).__name__} sees all; use a mechanism without an order, as ssmax"
        )
    full, windowed = layers(model, longest)
    chosen = [*full, *windowed] if asked.mechanism.windowed else full
    if not chosen:
        config = model.config.get_text_config()
        key = next((name for name in WINDOW_KEYS if getattr(config, name, None) is not None), None)
        remedy = f", or set the config's {key} to null" if key else ""
        raise UserError(
            f"attention {asked.mechanism.name}: every attention layer of {type(model).__name__} is windowed, none can take "
            f"a mechanism of n; use softmax{remedy}"
        )
    if train_length is None or train_length < 2:
        if not asked.is_softmax:
            raise UserError(
                f"attention {asked.mechanism.name}: the training length of {type(model).__name__} is unknown; "
                f"say it: --attention {asked.mechanism.name}:train_length=TOKENS"
            )
        train_length = 2  # softmax knows none
    made: dict[str, Mechanism] = {}
    carried = mechanisms_of(model)
    for name in attention_modules(model):
        if name in chosen:
            first = next((each for each in made.values() if isinstance(each, asked.mechanism)), None)
            made[name] = asked.on(layer_of(model, name, train_length, seed, lengths), first)
        elif bias is not None:  # position is on every layer
            made[name] = Softmax(layer_of(model, name, train_length))
        if name in made:
            if changes(made[name]):  # refused before anything is taken off
                projections(model.get_submodule(name), made[name])
            if bias is not None:
                own = getattr(carried.get(name), "position_bias", None)  # with what it learned
                keeps = own is not None and own.name == bias
                made[name].position_bias = own if keeps else bias_named(bias)(made[name].layer.heads)
            made[name].to(computes_on(model.get_submodule(name), model))
    detach(model)
    put_on(model, made)
    # a train_length given for one mechanism stays in its spelling: it is not the model's
    entry: dict[str, Any] = {"attention": str(asked), "train_length": trained_at}
    entry |= {} if bias is None else {"position": bias}
    # whoever opens a checkpoint of it has to import the same file
    files = [source_of(each) for each in (asked.mechanism, *([] if bias is None else [bias_named(bias)]))]
    entry |= {"source": [*dict.fromkeys(file[0] for file in files if file)]} if any(files) else {}
    model.config.ssmax = entry
    vars(model)["attention_before"] = implementations(model)  # for detach
    attend_with(model, IMPLEMENTATION)
    return attached(model, str(asked), train_length)


def put_on(model: PreTrainedModel, mechanisms: Mapping[str, Mechanism]) -> None:
    """Give layers, by name, their mechanisms, and refuse to run a layer without its own."""
    for name, mechanism in mechanisms.items():
        module = model.get_submodule(name)
        module.ssmax = mechanism
        module.register_forward_pre_hook(refuse_other_attention)
        module.register_forward_hook(refuse_unheard)
        if mechanism.needs_input:
            module.register_forward_pre_hook(show_input, with_kwargs=True)
        if changes(mechanism):
            hook(module, mechanism)
    shared_parameters(mechanisms)


def show_input(module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
    """Leave a layer's input where the attention function finds it."""
    vars(module)["layer_input"] = options.get("hidden_states", arguments[0] if arguments else None)


def refuse_other_attention(module: nn.Module, _: Any) -> None:
    """Raise UserError where a layer is about to run an attention function that does not know its mechanism."""
    if not torch.compiler.is_compiling():
        vars(module).pop("heard", None)  # of a compiled forward, which nobody asked
    mechanism: Mechanism | None = getattr(module, "ssmax", None)
    named = getattr(getattr(module, "config", None), "_attn_implementation", IMPLEMENTATION)
    if mechanism is not None and mechanism.active and named not in OURS:
        raise UserError(
            f"attention implementation {named!r}: it would drop the model's mechanism; choose {IMPLEMENTATION!r} again "
            f"(model.set_attn_implementation), or take the mechanism off: ssmax_eval.detach(model)"
        )


def refuse_unheard(module: nn.Module, *_: Any) -> None:
    """Raise UserError where a layer ran and its mechanism did not: its forward is code that never calls the attention interface."""
    if torch.compiler.is_compiling():  # with the attention function in one graph
        return
    mechanism: Mechanism | None = getattr(module, "ssmax", None)
    heard = vars(module).pop("heard", False)
    if mechanism is not None and mechanism.active and not heard:
        bias = mechanism.position_bias
        raise UserError(
            f"attention {mechanism.name}{f' with position {bias.name}' if bias else ''}: a layer attends by code of its own "
            f"({type(module).__name__}), which leaves it out; use a model whose layers call transformers' attention interface"
        )


def detach(model: PreTrainedModel) -> None:
    """Take the mechanism off every layer, leaving plain softmax on the model's own attention implementation."""
    for module in attention_modules(model).values():
        module._modules.pop("ssmax", None)
        unhook(module)
        for key, each in [*module._forward_pre_hooks.items()]:
            if each in (refuse_other_attention, show_input):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        for key, each in [*module._forward_hooks.items()]:
            if each is refuse_unheard:
                del module._forward_hooks[key]
    if hasattr(model.config, "ssmax"):
        del model.config.ssmax
    restore(vars(model).pop("attention_before", []))


def mechanisms_of(model: PreTrainedModel) -> dict[str, Mechanism]:
    """Return the mechanisms a model carries, by the name of their attention module."""
    found = {name: getattr(module, "ssmax", None) for name, module in attention_modules(model).items()}
    return {name: mechanism for name, mechanism in found.items() if mechanism is not None}


def reach_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens back a model's layers can carry anything; None where there is a layer without such a limit."""
    carried = mechanisms_of(model)
    reaches = [each.reach for each in carried.values()]
    limited = [reach for reach in reaches if reach is not None]
    return max(limited) if limited and len(limited) == len(attention_modules(model)) else None


def learned_of(model: PreTrainedModel) -> dict[str, dict[str, list[float]]]:
    """Return what every layer's mechanism learned, {module name: {parameter: values}}, long tables left out."""
    return {name: learned_by(mechanism) for name, mechanism in mechanisms_of(model).items()}


def learned_by(mechanism: Mechanism) -> dict[str, list[float]]:
    """Return what one mechanism learned, brought back for it where accelerate has offloaded it."""
    parts = {"": mechanism} | ({} if mechanism.position_bias is None else {"position_bias.": mechanism.position_bias})
    return {f"{part}{key}": values for part, each in parts.items() for key, values in learned_in(each).items()}


def learned_in(part: Mechanism | Bias) -> dict[str, list[float]]:
    """Return what a mechanism or a bias tells of itself."""
    if not any(parameter.is_meta for parameter in part.parameters()):
        return part.learned()
    from accelerate.utils import align_module_device

    with align_module_device(part, execution_device=torch.device("cpu")):
        return part.learned()


def bias_named(name: str) -> type[Bias]:
    """Return a position bias by its name, or what says that there is none. Raises UserError for an unknown one."""
    known = {**biases(), NoPosition.name: NoPosition}
    if name not in known:
        raise UserError(f"position {name!r}: allowed are {', '.join(known)}; one of your own needs --import FILE.py")
    return known[name]
