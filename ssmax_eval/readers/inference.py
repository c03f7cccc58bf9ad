"""A model while it is read: without dropout, with its own code, not compiled, and left as it was given."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..mechanisms.implementation import implementations

# of a config: what a forward returns, not what it computes
FORWARD_SWITCHES = {"return_dict": True, "_output_attentions": False, "output_hidden_states": False}


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Run a block without dropout, and with forwards that return what they return by default; all comes back afterwards.

    Compiled modules run as they are written: what we catch, record and change in a forward is not in a compiled one.
    """
    training = {name: module.training for name, module in model.named_modules()}
    configs = {id(each): each for each, _ in implementations(model)}.values()
    switches = [
        (config, name, vars(config)[name], usual)
        for config in configs
        for name, usual in FORWARD_SWITCHES.items()
        if name in vars(config)
    ]
    signature = inspect.signature(model.forward).parameters
    takes_cache = "use_cache" in signature or any(each.kind is each.VAR_KEYWORD for each in signature.values())
    hook = None if takes_cache else model.register_forward_pre_hook(without_cache, with_kwargs=True)
    compiled = [(vars(module), *each) for module in model.modules() for each in compiled_in(vars(module))]
    try:
        for held, name, _, plain in compiled:
            held[name] = plain
        model.eval()
        for config, name, _, usual in switches:
            setattr(config, name, usual)
        yield
    finally:
        if hook is not None:
            hook.remove()
        for name, module in model.named_modules():
            module.training = training.get(name, False)
        for config, name, given, _ in switches:
            setattr(config, name, given)
        for held, name, given, _ in compiled:
            held[name] = given


def without_cache(module: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Leave the wish for no cache out of a forward that knows none, as a user's own model's."""
    return args, {name: value for name, value in options.items() if name != "use_cache" or value}


def compiled_in(held: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield what of a module's attributes is compiled: its name, itself, and what stands in its place without."""
    if held.get("_compiled_call_impl") is not None:  # by module.compile()
        yield "_compiled_call_impl", held["_compiled_call_impl"], None
    if (plain := getattr(held.get("forward"), "_torchdynamo_orig_callable", None)) is not None:
        yield "forward", held["forward"], plain  # module.forward = torch.compile(module.forward)


@contextmanager
def unswitched(model: PreTrainedModel) -> Iterator[None]:
    """Run a block in which every forward finds the model as the block did: what a forward switches in it is put back after it.

    BigBird, for one, attends in full from its first short text on, whatever its config says, and so would the proof's length, or
    the order of prompts, decide the numbers of the longer ones. What says which code runs is looked at: modules in their places,
    and what modules and configs call by a name (an attention type); private names are ours and transformers' to change.
    """
    owners = [vars(module) for module in model.modules()] + [vars(config) for config, _ in implementations(model)]
    held = [(owner, name, value) for owner in owners for name, value in owner.items() if type(value) is str]
    held = [each for each in held if not each[1].startswith("_")]
    held += [(module._modules, name, part) for module in model.modules() for name, part in module._modules.items()]

    def put_back(*_: Any) -> None:
        for owner, name, value in held:
            if owner.get(name) is not value:
                owner[name] = value

    hook = model.register_forward_hook(put_back, always_call=True)
    try:
        yield
    finally:
        hook.remove()
        put_back()


@contextmanager
def greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Run a block in which a model's generate decodes greedily, whatever its checkpoint's generation config asks for.

    Of that only the end tokens count: penalties and beams would make it another decoding. Raises UserError for a model without one.
    """
    own = getattr(model, "generation_config", None)
    if own is None:
        raise UserError(
            f"{type(model).__name__}: it cannot generate (its class is no GenerationMixin of transformers); use --scoring forced"
        )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=own.eos_token_id, pad_token_id=pad)
    try:
        yield
    finally:
        model.generation_config = own
