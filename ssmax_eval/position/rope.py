"""RoPE at eval time: theta by factor or value, linear, NTK, dynamic and YaRN scaling, with proof that it took effect."""

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError, first_line, is_out_of_memory
from .rotary import (
    effective_theta,
    first_frequencies,
    frequencies,
    kind_of,
    made_with,
    parameters_of,
    rotary_modules,
    rotation,
    rotations_matter,
    rotations_off,
    told_parameters,
    try_rotations,
)

SMALLEST, LARGEST = 1e-6, 1e15  # of theta and its factor: beyond, float32 frequencies mean nothing
ROUNDED, STEP = 2**-7, 2**-24  # of a frequency, what a cast to bfloat16 leaves; float16's smallest step
SOME_LENGTH = 4096  # tokens, where neither a prompt nor the config tells one
SCALINGS = ("linear", "ntk", "ntk-by-parts", "dynamic", "yarn")


@dataclass(frozen=True)
class RopeSetting:
    """A request: theta_factor multiplies theta, theta replaces it, scaling is `TYPE:FACTOR`. The default asks for nothing."""

    theta_factor: float = 1.0
    theta: float | None = None
    scaling: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("theta_factor", self.theta_factor), ("theta", self.theta)):
            if value is not None and not SMALLEST <= value <= LARGEST:
                raise UserError(f"rope_{name} {value:g}: allowed are numbers from {SMALLEST:g} to {LARGEST:g}")
            if value is not None:
                object.__setattr__(self, name, float(value))
        if self.theta is not None and self.theta_factor != 1:
            raise UserError("rope_theta and rope_theta_factor are both given: give one of them")
        if self.scaling is not None:
            kind, factor = parse_scaling(self.scaling)
            object.__setattr__(self, "scaling", f"{kind}:{factor:g}")

    @property
    def changes(self) -> bool:
        return self != RopeSetting()

    def __str__(self) -> str:
        parts = [f"theta x{self.theta_factor:g}"] if self.theta_factor != 1 else []
        parts += [f"theta {self.theta:g}"] if self.theta is not None else []
        parts += [self.scaling] if self.scaling else []
        return ", ".join(parts) or "as trained"


def parse_scaling(text: str) -> tuple[str, float]:
    """Split `TYPE:FACTOR`, for example `yarn:4`; the factor must be above 1."""
    kind, _, number = text.partition(":")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if kind not in SCALINGS or not 1 < factor <= 1e6:
        raise UserError(
            f"rope scaling {text!r}: allowed are TYPE:FACTOR, TYPE one of {', '.join(SCALINGS)}, FACTOR above 1"
        )
    return kind, factor


@dataclass(frozen=True)
class RopeRecord:
    """What a model's rotary embedding does: requested setting, configured and effective theta (the latter from inv_freq).

    rope_theta is None where neither a config nor the frequencies tell one. inv_freq_sha256 is over the float32 frequencies;
    attention_scaling multiplies cos and sin.
    """

    requested: str
    rope_type: str
    rope_theta: float | None
    effective_theta: float
    attention_scaling: float
    inv_freq_sha256: str


def scaled_parameters(
    parameters: dict[str, Any], setting: RopeSetting, rotary_dim: int, trained: int | None
) -> dict[str, Any]:
    """Return a copy of rope_parameters under a setting; raises UserError for combinations that have no meaning."""
    new = dict(parameters)
    kind, native = new.get("rope_type", "default"), float(new["rope_theta"])
    new["rope_theta"] = setting.theta if setting.theta is not None else native * setting.theta_factor
    if setting.scaling is None:
        return new
    scaling, factor = parse_scaling(setting.scaling)
    if kind == "proportional" and scaling == "linear":
        return {**new, "factor": factor * float(new.get("factor", 1.0))}
    if kind != "default":
        raise UserError(
            f"rope scaling {setting.scaling}: this model already uses RoPE scaling {kind}; change its theta instead"
        )
    if scaling == "ntk":
        # NTK-aware scaling: the theta at which the slowest frequency is divided by the factor
        return {**new, "rope_theta": new["rope_theta"] * factor ** (rotary_dim / (rotary_dim - 2))}
    new |= {"rope_type": "yarn" if scaling == "ntk-by-parts" else scaling, "factor": factor}
    if scaling in ("yarn", "ntk-by-parts"):
        new["original_max_position_embeddings"] = trained
    if scaling == "ntk-by-parts":
        new["attention_factor"] = 1.0  # YaRN's frequencies without its temperature
    return new


def rebuild(model: PreTrainedModel, path: str, setting: RopeSetting) -> nn.Module:
    """Build a rotary module of a model anew from a copied config under a setting."""
    rotary = model.get_submodule(path)
    config = copy.deepcopy(rotary.config)
    kind = kind_of(rotary, model)
    parameters = parameters_of(config, kind)
    trained = getattr(config, "max_position_embeddings", None)
    new = scaled_parameters(parameters, setting, 2 * len(frequencies(rotary, kind)[0]), trained)
    parameters.clear()
    parameters.update(new)
    inv_freq = next(buffer for key, buffer in rotary.named_buffers() if key.endswith("inv_freq"))
    made: nn.Module = type(rotary)(config=config, **made_with(model, path)).to(inv_freq.device)
    return made


def refuse_other_frequencies(model: PreTrainedModel, rotaries: Mapping[str, nn.Module], setting: RopeSetting) -> None:
    """Raise UserError where a model turns by other frequencies than its config gives: a change is made of the config's."""
    for path, rotary in rotaries.items():
        kind = kind_of(rotary, model)
        own, given = (first_frequencies(each, kind) for each in (rotary, rebuild(model, path, RopeSetting())))
        if own.shape != given.shape or not torch.allclose(own, given, rtol=ROUNDED, atol=STEP):
            raise UserError(
                f"rope {setting}: {type(model).__name__} turns by other frequencies than its config gives ({path} was changed by hand), "
                "and a setting would start from the config's; set what it has in its config, or leave the RoPE options out"
            )


def restart_dynamic(rotary: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forget earlier prompts when a new one starts: dynamic scaling keeps the frequencies of the longest so far."""
    position_ids: Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    if position_ids.min() != 0:
        return
    for name, original in list(rotary.named_buffers()):
        if name.endswith("original_inv_freq"):
            prefix = name.removesuffix("original_inv_freq")
            setattr(rotary, f"{prefix}inv_freq", original.clone().to(position_ids.device))
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)


def record(rotary: nn.Module, kind: str | None, setting: RopeSetting, longest: int | None) -> RopeRecord:
    """Return what a rotary module does. One that is not made from a config has a theta by its frequencies alone."""
    rotary = copy.deepcopy(rotary)
    parameters = told_parameters(rotary, kind)
    if longest and parameters is not None:
        rotation(rotary, longest, kind)  # dynamic scaling settles on the frequencies of the longest prompt
    inv_freq, scaling = frequencies(rotary, kind)
    digest = hashlib.sha256(inv_freq.numpy().astype("<f4").tobytes()).hexdigest()[:16]
    # transformers leaves a buffer that code of others computes as the memory was: some of that code never reads it
    falls = bool((inv_freq > 0).all() and (inv_freq.diff() < 0).all())
    effective = effective_theta(inv_freq) if falls or parameters is not None else math.nan
    rope_type, theta = "unknown", None if math.isnan(effective) else effective
    if parameters is not None:
        rope_type, theta = str(parameters.get("rope_type", "default")), float(parameters["rope_theta"])
    return RopeRecord(str(setting), rope_type, theta, effective, scaling, digest)


def had_effect(old: nn.Module, new: nn.Module, kind: str | None, longest: int | None) -> bool:
    """Compare the rotations of two modules over the longest prompt (default: twice the trained length)."""
    length = longest or 2 * int(getattr(old.config, "max_position_embeddings", SOME_LENGTH))
    one, other = (rotation(copy.deepcopy(rotary), length, kind) for rotary in (old, new))
    return not torch.equal(one, other)


def changed(model: PreTrainedModel, setting: RopeSetting, longest: int | None) -> dict[str, nn.Module]:
    """Return a model's rotary modules under a setting, by name. Raises UserError for one that shows nowhere in the logits."""
    name, rotaries = type(model).__name__, rotary_modules(model)
    for rotary in rotaries.values():
        if told_parameters(rotary, kind_of(rotary, model)) is None:
            raise UserError(
                f"rope {setting}: {type(rotary).__name__} of {name} is not made from a config, so it cannot be made anew with "
                "another RoPE; leave the RoPE options out"
            )
    refuse_other_frequencies(model, rotaries, setting)
    new = {path: rebuild(model, path, setting) for path in rotaries}
    kinds = {rotary: kind_of(rotary, model) for rotary in rotaries.values()}
    other = {old: kinds[old] for path, old in rotaries.items() if had_effect(old, new[path], kinds[old], longest)}
    if not other:
        at = f" at prompts of {longest} tokens" if longest else ""
        raise UserError(f"rope {setting}: it has no effect on {name}{at}; choose another value")
    if not rotations_matter(model, other):
        raise UserError(
            f"rope {setting}: it has no effect on {name}, which computes rotations and turns nothing by them; leave the RoPE "
            "options out"
        )
    return new


@contextmanager
def rope_scaled(
    model: PreTrainedModel,
    theta_factor: float = 1.0,
    theta: float | None = None,
    scaling: str | None = None,
    longest: int | None = None,
) -> Iterator[RopeRecord | None]:
    """Run a block with changed rotary frequencies and yield what they are; None for a model without RoPE left as it is.

    scaling: `TYPE:FACTOR` of linear, ntk (static NTK-aware), ntk-by-parts, dynamic, yarn. longest: tokens of the longest
    prompt, for the proof of effect. Where windowed layers have RoPE parameters of their own, those stay. Dynamic scaling
    sets the frequencies by the length of each forward, so one pass over prompt and answer differs from cached decoding.
    Raises UserError for a model without RoPE, a combination without meaning, and a setting without effect.
    """
    setting = RopeSetting(theta_factor, theta, scaling)
    rotaries = rotary_modules(model)
    name = type(model).__name__
    if not rotaries:
        if setting.changes:
            raise UserError(f"rope {setting}: {name} has no rotary position embedding; leave the RoPE options out")
        yield None
        return
    hooks = []
    try:
        with taking(model, setting):
            for path, new in (changed(model, setting, longest) if setting.changes else rotaries).items():
                model.set_submodule(path, new)
                if "dynamic" in str(getattr(new, "rope_type", "")):
                    hooks.append(new.register_forward_pre_hook(restart_dynamic, with_kwargs=True))
            if setting.changes:
                try_rotations(model)
        first, old = next(iter(rotaries.items()))
        yield record(model.get_submodule(first), kind_of(old, model), setting, longest)
    finally:
        for hook in hooks:
            hook.remove()
        for path, old in rotaries.items():
            model.set_submodule(path, old)


@contextmanager
def taking(model: PreTrainedModel, setting: RopeSetting) -> Iterator[None]:
    """Say in one line that a model's own code does not run under a setting: which it takes is nowhere told. Raises UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not setting.changes or is_out_of_memory(error):
            raise
        raise UserError(
            f"rope {setting}: {type(model).__name__} does not run with it ({first_line(error)}); choose another RoPE setting, or "
            "leave it out"
        ) from error


@contextmanager
def rope_off(model: PreTrainedModel) -> Iterator[None]:
    """Run a block with rotary modules that do not turn; they come back afterwards."""
    rotaries = rotary_modules(model)
    try:
        for path, old in rotaries.items():
            still = copy.deepcopy(old)
            for name, buffer in still.named_buffers():
                if name.endswith("inv_freq"):
                    buffer.zero_()
            for name in vars(still):
                if name.endswith("attention_scaling"):
                    setattr(still, name, 1.0)
                elif name.endswith("rope_type"):
                    kinds = vars(still)[name]
                    setattr(still, name, dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default")
            model.set_submodule(path, still)
        # some compute their frequencies anew in each forward (PhiMoE): what they give is put right too
        with rotations_off({model.get_submodule(path): None for path in rotaries}):
            yield
    finally:
        for path, old in rotaries.items():
            model.set_submodule(path, old)
