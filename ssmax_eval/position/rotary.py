"""A model's rotary modules: which they are, what they turn by, and whether the model uses what they give."""

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

MOVING = ("dynamic", "longrope")  # types of RoPE whose angles hang on the length of each forward
TRIED = 8  # tokens of a forward that shows whether rotations matter, and whether a model runs with others


def decoder_modules(model: PreTrainedModel) -> set[nn.Module]:
    """Return the modules of a model's text decoder; all of the model's where it has none of its own."""
    decoder = set(model.get_decoder().modules())
    # some call their head so
    return decoder if model.get_input_embeddings() in decoder else set(model.modules())


def rotary_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the text decoder's modules that hold rotary frequencies, by name."""
    decoder = decoder_modules(model)
    return {
        name: module
        for name, module in model.named_modules()
        if module in decoder and any("inv_freq" in key for key, _ in module.named_buffers(recurse=False))
    }


def rope_that_turns(model: PreTrainedModel) -> str | None:
    """Return the type of a model's RoPE if its angles hang on the length of each forward; None if they do not."""
    kinds = [str(getattr(rotary, "rope_type", "")) for rotary in rotary_modules(model).values()]
    return next((word for kind in kinds for word in MOVING if word in kind), None)


def rope_switch(model: PreTrainedModel) -> int | None:
    """Return the length in tokens above which longrope turns with its other frequencies; None for RoPE that does not switch."""
    for rotary in rotary_modules(model).values():
        if "longrope" in str(getattr(rotary, "rope_type", "")):
            parameters = told_parameters(rotary, kind_of(rotary, model)) or {}
            if (length := parameters.get("original_max_position_embeddings")) is not None:
                return int(length)
    return None


def turns_beyond(model: PreTrainedModel) -> int | None:
    """Return the length in tokens above which RoPE's angles hang on the length of the forward; None for RoPE whose never do."""
    if rope_that_turns(model) is None:
        return None
    if (switch := rope_switch(model)) is not None:
        return switch
    told = [getattr(rotary, "original_max_seq_len", 0) for rotary in rotary_modules(model).values()]
    return min(map(int, told), default=0)


def says_window(kind: str) -> bool:
    """Tell whether the name of a type of layers says that they have a window."""
    return any(word in kind for word in ("sliding", "chunked", "local"))


def kind_of(rotary: nn.Module, model: PreTrainedModel) -> str | None:
    """Return the type of layers whose frequencies are looked at and changed: of those without a window; None for one type.

    The frequencies go by the type of layer, or by names that only the layers know (DeepSeek V4): then a layer is asked.
    """
    keys = [key.removesuffix("_inv_freq") for key, _ in rotary.named_buffers() if key.endswith("_inv_freq")]
    kinds = [key for key in keys if key != "original" and not key.endswith("_original")]
    if hasattr(rotary, "inv_freq") or not kinds:
        return None
    full = [kind for kind in kinds if not says_window(kind)] or kinds
    if "full_attention" in full:
        return "full_attention"
    told = [[each for each in vars(module).values() if isinstance(each, str)] for module in model.modules()]
    asked = [kind for texts in told if not any(map(says_window, texts)) for kind in texts if kind in full]
    return asked[0] if asked else full[0]


def frequencies(rotary: nn.Module, kind: str | None) -> tuple[Tensor, float]:
    """Return inv_freq, float32 (pairs,), and the cos/sin scaling, of a type of layers where types differ."""
    prefix = f"{kind}_" if kind else ""
    held = {name: buffer for name, buffer in rotary.named_buffers() if "inv_freq" in name}
    inv_freq = held.get(f"{prefix}inv_freq", next(iter(held.values()))).detach().float().cpu()
    return inv_freq, float(getattr(rotary, f"{prefix}attention_scaling", 1.0))


def first_frequencies(rotary: nn.Module, kind: str | None) -> Tensor:
    """Return inv_freq as frequencies does, before a long forward has moved it where RoPE turns by the length of each."""
    moves = any(word in str(getattr(rotary, "rope_type", "")) for word in MOVING)
    first = getattr(rotary, f"{kind}_original_inv_freq" if kind else "original_inv_freq", None)
    return first.detach().float().cpu() if moves and isinstance(first, Tensor) else frequencies(rotary, kind)[0]


def effective_theta(inv_freq: Tensor) -> float:
    """Return theta as the frequencies have it: (first / last rotating)^(pairs / last); nan if fewer than two rotate."""
    rotating = int((inv_freq > 0).sum())
    if rotating < 2:
        return math.nan
    last = rotating - 1
    return float((inv_freq[0].double() / inv_freq[last].double()) ** (len(inv_freq) / last))


def parameters_of(config: Any, kind: str | None) -> dict[str, Any]:
    """Return the rope_parameters of a rotary module's config for a type of layers, in place."""
    config.standardize_rope_params()
    parameters: dict[str, Any] = config.rope_parameters
    return parameters.get(kind or "full_attention") or parameters


def told_parameters(rotary: nn.Module, kind: str | None) -> dict[str, Any] | None:
    """Return a copy of the rope_parameters of a rotary module for a type of layers; None for one that is not made from a config.

    Code of checkpoints from before transformers gave it one is made from a width and a base: RotaryEmbedding(dim, base).
    """
    config = getattr(rotary, "config", None)
    if not isinstance(getattr(config, "rope_parameters", None), dict):
        return None
    parameters = parameters_of(copy.deepcopy(config), kind)
    return parameters if "rope_theta" in parameters else None


def rotation(rotary: nn.Module, length: int, kind: str | None) -> Tensor:
    """Return what a rotary module gives (cos and sin, or complex) at the first and last position of a prompt."""
    device = next(rotary.buffers()).device
    position_ids = torch.tensor([[0, length - 1]], device=device)
    typed = [kind] if kind else []
    x = torch.zeros(1, dtype=torch.float32, device=device)
    try:
        out = rotary(x, position_ids, *typed)
    except IndexError:  # of a multimodal model, some releases of transformers want positions in time, height and width
        out = rotary(x, position_ids.expand(3, 1, -1), *typed)
    return out if isinstance(out, Tensor) else torch.stack(out)


def stands_still(rotary: nn.Module) -> bool:
    """Tell whether a rotary module turns nothing, as one of a model without positions does."""
    return all(not buffer.any() for name, buffer in rotary.named_buffers() if name.endswith("inv_freq"))


def unturned(kind: str | None, module: nn.Module, args: Any, options: dict[str, Any], out: Any) -> Any:
    """Return, in the place of what a rotary module gives, what turns nothing: cos 1 and sin 0, or 1 where it is complex.

    kind: of the calls for that type of layers alone; None for all. What is of neither form stays.
    """
    if kind is not None and kind not in [each for each in (*args, *options.values()) if isinstance(each, str)]:
        return out
    if isinstance(out, Tensor):
        return torch.ones_like(out) if out.is_complex() else out
    return (torch.ones_like(out[0]), torch.zeros_like(out[1])) if is_rotation(out) else out


def is_rotation(out: Any) -> bool:
    """Tell whether a pair is cos and sin of the same angles, times one factor: some modules give queries and keys that they turned."""
    if len(out) != 2 or out[0].shape != out[1].shape:
        return False
    radius = (out[0].float().square() + out[1].float().square()).sqrt()
    return bool(radius.max() <= 1.1 * radius.min())


@contextmanager
def rotations_off(rotaries: Mapping[nn.Module, str | None]) -> Iterator[None]:
    """Run a block in which rotary modules turn nothing, for the type of layers of each; None for all."""
    hooks = [
        rotary.register_forward_hook(partial(unturned, kind), with_kwargs=True) for rotary, kind in rotaries.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def try_rotations(model: PreTrainedModel) -> Tensor:
    """Return a model's logits of a few tokens."""
    words = model.get_input_embeddings().weight.shape[0]
    device = next(buffer.device for rotary in rotary_modules(model).values() for buffer in rotary.buffers())
    ids = torch.arange(1, TRIED + 1, device=device)[None] % words
    logits: Tensor = model(input_ids=ids, use_cache=False, return_dict=True).logits
    return logits


def rotations_matter(model: PreTrainedModel, rotaries: Mapping[nn.Module, str | None]) -> bool:
    """Tell whether a model's logits hang on what rotary modules give, for the type of layers of each; None for all.

    Some models hold such modules, and turn nothing by them: Falcon with ALiBi.
    """
    try:
        turned = try_rotations(model)
        with rotations_off(rotaries):
            return not torch.equal(try_rotations(model), turned)
    except Exception:  # one that does not read a few tokens says so where it reads
        return True


def made_with(model: PreTrainedModel, path: str) -> dict[str, Any]:
    """Return what a model gives the class of a rotary module beside its config, as Molmo2 does for layers without scaling.

    The model is built once more to see it, without memory for its weights.
    """
    kind: Any = type(model.get_submodule(path))
    build, given = kind.__init__, {}
    signature = inspect.signature(build)
    if signature.parameters.keys() <= {"self", "config", "device"}:
        return {}

    def listen(self: nn.Module, *arguments: Any, **options: Any) -> None:
        given[self] = signature.bind(self, *arguments, **options).arguments
        build(self, *arguments, **options)

    kind.__init__ = listen
    try:
        with torch.device("meta"):
            twin = type(model)(copy.deepcopy(model.config))
    finally:
        kind.__init__ = build
    found = given[twin.get_submodule(path)]
    return {name: value for name, value in found.items() if name not in ("self", "config", "device")}
