"""How a mechanism is spelled, `NAME[:key=value,...]`, and what there is to know of each."""

import inspect
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UserError, nearest
from ..position.bias import Bias, NoPosition, biases
from .files import source_of
from .mechanism import Layer, Mechanism
from .registry import MECHANISMS, is_own, mechanisms

LARGEST_OPTION = 1e9
LARGEST_LENGTH = 2**27  # tokens; also the longest table of learned-p
PARTS = ("project", "query", "key", "scores", "weights", "join", "finish", "begin", "attend", "mix")
# on which options are tried: whatever a mechanism wants of a layer, it is there
EXAMPLE = Layer(heads=16, train_length=1024, key_heads=16, head_dim=64, width=1024, index=0, layers=16)


@dataclass(frozen=True)
class Attention:
    """A mechanism with options, as a user asks for it; `str` is its one spelling, keys sorted.

    train_length: L in tokens, an option of every mechanism; None is the model's.
    """

    mechanism: type[Mechanism]
    options: tuple[tuple[str, float], ...] = ()
    train_length: int | None = None

    @classmethod
    def of(cls, text: "str | Attention") -> "Attention":
        """Parse `NAME[:key=value,...]`. Raises UserError for unknown names and options, and values out of range."""
        return text if isinstance(text, Attention) else parse(text)

    def __str__(self) -> str:
        given: dict[str, float] = dict(self.options)
        if self.train_length is not None:
            given["train_length"] = self.train_length
        rest = ",".join(f"{key}={plain_number(given[key])}" for key in sorted(given))
        return f"{self.mechanism.name}:{rest}" if rest else self.mechanism.name

    @property
    def is_softmax(self) -> bool:
        """Whether it is plain softmax, which needs no mechanism on a layer."""
        return self.mechanism.name == "softmax"

    @property
    def shares(self) -> bool:
        """Whether its layers share parameters."""
        return "first" in inspect.signature(self.mechanism).parameters

    def on(self, layer: Layer, first: Mechanism | None = None) -> Mechanism:
        """Return the mechanism of one layer. first: that of the first layer."""
        shared = {"first": first} if first is not None and self.shares else {}
        whole = whole_options(self.mechanism)
        options = {key: int(value) if key in whole else value for key, value in self.options}
        made = self.mechanism(layer, **options, **shared)
        if not is_own(self.mechanism):
            refuse_incomplete(made)
        return made


def refuse_incomplete(made: Any) -> None:
    """Raise UserError for a mechanism of a user's own that a checkpoint could not give back, or that starts from no numbers."""
    name = type(made).name
    if not isinstance(made, Mechanism) or "layer" not in vars(made):
        raise UserError(f"attention {name!r}: its __init__ does not begin with super().__init__(layer); let it")
    unsaved = [key for module in made.modules() for key in module._non_persistent_buffers_set]
    if unsaved:
        raise UserError(
            f"attention {name!r}: its buffer {unsaved[0]} is not saved, and a checkpoint would come back without it; register "
            "it with persistent=True, or compute it where it is needed"
        )
    for key, value in [*made.named_parameters(), *made.named_buffers()]:
        if not (value.is_meta or torch.isfinite(value).all()):
            raise UserError(f"attention {name!r}: {key} is not finite at first; give it finite values")


def remedy(source: str) -> str:
    """Say what brings a mechanism or a position that comes from a file, or from a module that is not installed."""
    if source.endswith(".py"):
        return f"add --import {source}, or in Python ssmax_eval.import_file({source!r})"
    return f"install what brings module {source}"


def check_entry(entry: Any, where: str) -> None:
    """Raise UserError for an `ssmax` entry of a config that does not say, as ours do, what stands on a model's layers.

    where: whose entry it is, in words.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("attention"), str):
        raise UserError(f"{where}: the 'ssmax' entry of its config names no attention mechanism")
    name, sources, bias = entry["attention"].partition(":")[0], entry.get("source", []), entry.get("position")
    if not isinstance(sources, list) or not all(isinstance(each, str) and each for each in sources):
        raise UserError(f"{where}: source {sources!r} in the 'ssmax' entry of its config: allowed is a list of files")
    remedies = [remedy(each) for each in sources]
    if sources and name not in mechanisms():
        raise UserError(
            f"{where}: its attention mechanism {name!r} is not this package's own; it comes from {sources[0]}: {remedies[0]}"
        )
    asked = Attention.of(entry["attention"])
    if bias is not None and (not isinstance(bias, str) or bias not in (NoPosition.name, *biases())):
        raise UserError(
            f"{where}: position {bias!r} in the 'ssmax' entry of its config is unknown; allowed: {', '.join(biases())}"
            + (f"; or {remedies[-1]}" if remedies else "")
        )
    if asked.is_softmax and bias is None:
        raise UserError(
            f"{where}: the 'ssmax' entry of its config names softmax, which is a plain model's; take the entry out"
        )
    length = entry.get("train_length")
    whole = isinstance(length, int) and not isinstance(length, bool)
    if not (length is None or (whole and 2 <= length <= LARGEST_LENGTH)):
        raise UserError(
            f"{where}: train_length {length!r} in the 'ssmax' entry of its config: allowed are whole numbers from 2"
        )


def note_from_scratch(asked: Attention | type[Bias]) -> None:
    """Say it where a mechanism, or a position, that has to be trained from scratch is swapped in."""
    kind, swap = ("attention", asked.mechanism.swap) if isinstance(asked, Attention) else ("position", asked.swap)
    if not swap:
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: %s %s: it is made to be trained from scratch (ssmax-eval train); swapped in, it starts from "
            "first values that these weights have never seen",
            kind,
            asked if isinstance(asked, Attention) else asked.name,
        )


def parse(text: str) -> Attention:
    """Return what `NAME[:key=value,...]` asks for."""
    name, _, rest = text.partition(":")
    if name not in MECHANISMS:
        known = mechanisms()
        if name not in known:
            raise UserError(
                f"unknown attention mechanism {name!r}; allowed: {', '.join(known)}; one of your own needs --import FILE.py"
                + nearest(name, known)
            )
    mechanism = MECHANISMS[name]
    allowed = ["train_length", *options_of(mechanism)]
    options: dict[str, float] = {}
    if len({part.partition("=")[0] for part in rest.split(",")}) < len(rest.split(",")):
        raise UserError(f"attention {text!r}: an option is given twice; give it once")
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in allowed:
            near = "" if key in allowed else nearest(key, allowed)
            raise UserError(f"unknown option {part!r} of attention {name}; allowed: {', '.join(allowed)}=NUMBER{near}")
        try:
            options[key] = float(value)
        except ValueError:
            options[key] = math.nan
        if not abs(options[key]) <= LARGEST_OPTION:
            raise UserError(f"attention option {key}={value!r} of {name}: allowed are numbers up to {LARGEST_OPTION:g}")
    length = options.pop("train_length", None)
    for key in whole_options(mechanism) & options.keys():
        if not options[key].is_integer():
            raise UserError(f"attention option {key}={options[key]:g} of {name}: allowed are whole numbers")
    if length is not None and not (2 <= length <= LARGEST_LENGTH and length.is_integer()):
        raise UserError(f"attention option train_length={length:g}: allowed are whole numbers, 2 to {LARGEST_LENGTH}")
    found = Attention(mechanism, tuple(sorted(options.items())), None if length is None else int(length))
    example(found)  # its own refusals, early
    return found


def example(attention: Attention) -> Mechanism:
    """Return a mechanism on EXAMPLE. Raises UserError for one that cannot be made."""
    try:
        return attention.on(EXAMPLE)
    except UserError:
        raise
    except Exception as error:  # code of others raises anything
        raise UserError(f"attention {str(attention)!r}: it cannot be made ({type(error).__name__}: {error})") from error


def whole_options(mechanism: type[Mechanism]) -> set[str]:
    """Return a mechanism's options that are whole numbers: those annotated int."""
    parameters = inspect.signature(mechanism).parameters.values()
    return {p.name for p in parameters if p.annotation in (int, "int")}


def plain_number(value: float) -> str:
    """Write a number so that reading it gives the same number, whole ones without a point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def options_of(mechanism: type[Mechanism]) -> list[str]:
    """Return a mechanism's option names: the keyword-only arguments of its constructor."""
    parameters = inspect.signature(mechanism).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "first"]


def told() -> list[dict[str, Any]]:
    """Return what there is to know of every mechanism, typed for JSON.

    options: their defaults, None where there is none or the model decides. learned: names of what a layer learns, and
    learned_numbers how many numbers that is on a layer like EXAMPLE. parts: what it changes. swap: whether it can take softmax's
    place in trained weights. cache, signed, sparse, normalised, needs_input, carries: as Mechanism has them.
    """
    found = []
    for name, each in mechanisms().items():
        try:
            made, defaults = example(Attention(each)), inspect.signature(each).parameters
        except UserError as error:  # takes no other with it
            logging.getLogger(__name__).warning("ssmax-eval: note: %s; it is left out", error)
            continue
        changed = [part for part in PARTS if getattr(each, part) is not getattr(Mechanism, part)]
        found.append(
            {
                "mechanism": name,
                "formula": each.summary,
                "options": {
                    option: None if (at := defaults[option].default) is inspect.Parameter.empty else at
                    for option in options_of(each)
                },
                "learned": [key for key, _ in made.named_parameters()],
                "learned_numbers": sum(parameter.numel() for parameter in made.parameters()),
                "parts": changed,
                "swap": each.swap,
                "cache": each.cache,
                "signed": each.signed,
                "sparse": each.sparse,
                "normalised": each.normalised,
                "needs_input": each.needs_input,
                "carries": each.carries,
                "reference": each.reference,
                "choices": each.choices,
                "file": (source_of(each) or (None,))[0],
            }
        )
    return found
