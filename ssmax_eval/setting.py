"""A setting: a mechanism and a position, parsed once, spelled one way, put on a model for a block and taken off again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from .errors import UserError
from .mechanisms.attach import (
    Attached,
    attach,
    attached,
    bias_named,
    detach,
    learned_of,
    mechanisms_of,
    own_bias,
    put_on,
    reach_of,
)
from .mechanisms.files import source_of
from .mechanisms.implementation import (
    IMPLEMENTATION,
    attend_with,
    implementations,
    native_mechanism,
    our_function,
    restore,
)
from .mechanisms.layers import attention_modules, computes_on, layer_of
from .mechanisms.mechanism import Mechanism
from .mechanisms.registry import MECHANISMS, installed
from .mechanisms.scales import Softmax
from .mechanisms.spelling import Attention, note_from_scratch
from .mechanisms.train_length import train_length_of
from .position.bias import BIASES
from .position.learned import position_end
from .position.position import Position
from .position.rope import RopeRecord, RopeSetting, rope_off, rope_scaled
from .position.rotary import rotary_modules, rotations_matter, stands_still


@dataclass(frozen=True)
class Setting:
    """What a model is read with. attention: a mechanism that is swapped in; None is the model's own, learned values and all.

    with Setting.of("ssmax", rope_theta_factor=4)(model) as effective:
        ...
    """

    attention: Attention | None = None
    position: Position = field(default_factory=Position)

    @classmethod
    def of(
        cls,
        attention: str | Attention | None = None,
        *,
        rope_theta: float | None = None,
        rope_theta_factor: float = 1.0,
        rope_scaling: str | None = None,
        position: str | None = None,
    ) -> "Setting":
        """Parse a setting from what a user gives.

        attention: `NAME[:key=value,...]` (`ssmax-eval mechanisms`). rope_theta: absolute; rope_theta_factor: times the model's
        own. rope_scaling: `TYPE:FACTOR`. position: `nope` or a bias (`alibi`) in RoPE's place. Raises UserError.
        """
        asked = None if attention is None else Attention.of(attention)
        if position is not None:
            installed()  # packages can bring positions too
        return cls(asked, Position(RopeSetting(rope_theta_factor, rope_theta, rope_scaling), position))

    def __str__(self) -> str:
        parts = [str(self.attention)] if self.attention else []
        return ", ".join(parts + ([str(self.position)] if self.position.changes else [])) or "as trained"

    @contextmanager
    def __call__(self, model: PreTrainedModel | None, longest: int | None = None) -> Iterator["Effective"]:
        """Run a block with a model in this setting, and yield what it came to; all comes back afterwards.

        model: None for one that is not in this process: no setting reaches it. longest: tokens of the longest context to
        come: a window that holds them is none, and a change of RoPE has to show there. Raises UserError for what the model
        cannot take, and for a setting without effect.
        """
        if model is None:
            assert self == Setting()
            yield Effective(self, Attached(None, None), None)
            return
        with ExitStack() as stack:
            there = stack.enter_context(self.mechanism_on(model, longest))
            carries, bias = bool(mechanisms_of(model)), own_bias(model)
            bias = bias if self.position.instead is None else self.position.bias
            yield Effective(self, there, stack.enter_context(self.position_on(model, longest)), carries, bias)

    @contextmanager
    def mechanism_on(self, model: PreTrainedModel, longest: int | None) -> Iterator[Attached]:
        """Run a block with the mechanism and the bias on the model's layers."""
        own = own_bias(model)
        bias = own if self.position.instead is None else self.position.bias
        self.refuse_without_effect(model, own, bias)
        carried = mechanisms_of(model)
        if self.attention is None and bias == own:
            with own_function(model, carried):
                yield attached(model, native_mechanism(model), train_length_of(model.config))
            return
        if self.attention is not None:
            note_from_scratch(self.attention)
        if bias is not None and bias != own:
            note_from_scratch(bias_named(bias))
        before, first = implementations(model), vars(model).get("attention_before")
        entry = getattr(model.config, "ssmax", None)
        biases = {name: mechanism.position_bias for name, mechanism in carried.items()}
        try:
            if self.attention is None and carried:
                yield exchange_bias(model, carried, bias)
            else:
                yield attach(model, self.attention or "softmax", longest, bias)
        finally:
            detach(model)
            for name, mechanism in carried.items():
                mechanism.position_bias = biases[name]
            put_on(model, carried)
            if entry is not None:
                model.config.ssmax = entry
            if first is not None:
                vars(model)["attention_before"] = first
            restore(before)

    def refuse_without_effect(self, model: PreTrainedModel, own: str | None, bias: str | None) -> None:
        """Raise UserError for a position in RoPE's place that changes nothing, or beside which another stays on."""
        if self.position.instead is None:
            return
        rotaries = rotary_modules(model).values()
        rotates = any(not stands_still(rotary) for rotary in rotaries)
        if rotates and not rotations_matter(model, dict.fromkeys(rotaries)):
            raise UserError(
                f"position {self.position}: {type(model).__name__} computes rotations and turns nothing by them, so its own position "
                "would stay on; use a model with RoPE"
            )
        if not rotates and position_end(model) is not None:
            raise UserError(
                f"position {self.position}: {type(model).__name__} has positions of its own, which stay on; use a model with RoPE"
            )
        if not rotates and bias == own:
            what = "it is the model's own" if own else "the model has no RoPE to be taken off"
            raise UserError(f"position {self.position}: {what}, so it has no effect; leave it out")

    @contextmanager
    def position_on(self, model: PreTrainedModel, longest: int | None) -> Iterator[RopeRecord | None]:
        """Run a block with the model's RoPE as asked."""
        if self.position.instead is not None:
            with rope_off(model):
                yield None
            return
        rope = self.position.rope
        with rope_scaled(model, rope.theta_factor, rope.theta, rope.scaling, longest=longest) as effective:
            yield effective


def settings_of(
    attentions: Sequence[str | None] = (None,),
    rope_theta: float | None = None,
    rope_theta_factors: Sequence[float] = (1.0,),
    rope_scaling: str | None = None,
    position: str | None = None,
) -> list[Setting]:
    """Return a setting for each mechanism and theta factor, the other requests the same in all. Raises UserError."""
    return [
        Setting.of(
            attention, rope_theta=rope_theta, rope_theta_factor=factor, rope_scaling=rope_scaling, position=position
        )
        for attention in dict.fromkeys(attentions)
        for factor in dict.fromkeys(rope_theta_factors)
    ]


@contextmanager
def own_function(model: PreTrainedModel, carried: Mapping[str, Mechanism]) -> Iterator[None]:
    """Run a block on what the model attends with by itself: our function where it carries mechanisms."""
    if not carried:
        yield
        return
    with our_function(model):
        yield


def exchange_bias(model: PreTrainedModel, carried: Mapping[str, Mechanism], bias: str | None) -> Attached:
    """Give the mechanisms that a model carries another bias, their learned values untouched, and every other layer softmax with it."""
    trained_at = train_length_of(model.config)
    added: dict[str, Mechanism] = {}
    for name in attention_modules(model):
        mechanism = carried.get(name)
        if mechanism is None:
            mechanism = added[name] = Softmax(layer_of(model, name, trained_at or 2))
        made = None if bias is None else bias_named(bias)(mechanism.layer.heads)
        mechanism.position_bias = None if made is None else made.to(computes_on(model.get_submodule(name), model))
    put_on(model, added)
    attend_with(model, IMPLEMENTATION)
    return attached(model, native_mechanism(model), trained_at)


@dataclass(frozen=True)
class Effective:
    """What a setting came to on a model: where the mechanism is, and what its RoPE does (None without RoPE).

    carries: whether anything of ours stands on a layer. bias: the name of the bias in use.
    """

    setting: Setting
    attached: Attached
    rope: RopeRecord | None
    carries: bool = False
    bias: str | None = None

    @property
    def has_mechanism(self) -> bool:
        """Whether a mechanism or a bias stands on any layer."""
        return self.carries

    def sources(self) -> dict[str, Any]:
        """Return where a mechanism and a bias come from that are not this package's own, and what is told of the mechanism."""
        name = (self.attached.attention or "").partition(":")[0]
        mechanism = MECHANISMS.get(name)
        told = {} if mechanism is None else {"reference": mechanism.reference, "choices": mechanism.choices}
        kinds = [each for each in (mechanism, BIASES.get(str(self.bias))) if each is not None]
        files = {file: sha256 for each in kinds if (found := source_of(each)) for file, sha256 in [found]}
        return {key: value for key, value in told.items() if value} | ({"files": files} if files else {})

    def that_ran(self, called: Sequence[str] | None) -> "Effective":
        """Leave out the layers that never ran, as cross-attention does when there is only text.

        called: the attention modules that ran, None if that was not looked at. Raises UserError if none of those with a
        mechanism did.
        """
        there = self.attached
        if called is None or not there.scaled_layers:
            return self
        scaled = [pair for pair in zip(there.scaled_layers, there.scaled_indices, strict=True) if pair[0] in called]
        others = [pair for pair in zip(there.unscaled_layers, there.unscaled_indices, strict=True) if pair[0] in called]
        if not scaled:
            raise UserError(
                f"attention {there.attention}: none of the layers that it is on runs in a forward of text; use softmax"
            )
        ran = replace(
            there,
            scaled_layers=[name for name, _ in scaled],
            unscaled_layers=[name for name, _ in others],
            scaled_indices=[index for _, index in scaled],
            unscaled_indices=[index for _, index in others],
        )
        return replace(self, attached=ran)

    def columns(self) -> dict[str, Any]:
        """Return what every row of a run tells of the setting."""
        rope = self.setting.position.rope
        return {
            "attention": self.attached.attention,
            "attention_swapped": self.setting.attention is not None,
            "rope": str(self.setting.position),
            "rope_theta": self.rope.rope_theta if self.rope else None,
            "rope_theta_factor": rope.theta_factor,
            "rope_scaling": rope.scaling,
        }

    def record(self, model: PreTrainedModel | None) -> dict[str, Any]:
        """Return what a run's record tells of the setting."""
        asked = self.setting.position
        effective = None if self.rope is None else {k: None if v != v else v for k, v in asdict(self.rope).items()}
        reach = None if model is None else reach_of(model)
        return {
            "attention": {
                **asdict(self.attached),
                "swapped": self.setting.attention is not None,
                "learned": {} if model is None else learned_of(model),
                **self.sources(),
                **({} if reach is None else {"reach": reach}),
            },
            "rope": {"requested": asdict(asked.rope), "effective": effective}
            | ({} if asked.instead is None else {"position": asked.instead}),
        }
