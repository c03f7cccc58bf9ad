"""Options: what a probe can be asked, one field each; the command line, Python and their help are made from these."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from ..errors import UserError
from .defaults import SEED

Parse = Callable[[str, str], Any]


@dataclass(frozen=True)
class Told:
    """How an option is told of, and read on the command line.

    metavar: what stands for its value in the help. parse: reads its text, given the option's name first. repeated: it can be
    given several times. alone: it is taken by its probe's own command, where no other probe decides it.
    """

    help: str
    metavar: str | None = None
    parse: Parse | None = None
    repeated: bool = False
    alone: bool = False


class Field(NamedTuple):
    """One option: its name, type, default, and how it is told of."""

    name: str
    type: Any
    default: Any
    told: Told


def numbers(kind: type[int] | type[float]) -> Parse:
    """Return what reads numbers separated by commas."""

    def parse(what: str, text: str) -> tuple[Any, ...]:
        try:
            parsed = tuple(kind(part) for part in text.split(",") if part.strip())
        except ValueError:
            parsed = ()
        if not parsed:
            word = "whole numbers" if kind is int else "numbers"
            raise UserError(f"{what} {text!r}: allowed are {word} separated by commas")
        return parsed

    return parse


def one_or_more(what: str, text: str) -> float | tuple[float, ...]:
    """Read one number, or several separated by commas."""
    found: tuple[float, ...] = numbers(float)(what, text)
    return found[0] if len(found) == 1 else found


def auto(what: str, text: str) -> int | None:
    """Read auto, which is None, or one whole number."""
    if text == "auto":
        return None
    parsed = numbers(int)(what, text)
    if len(parsed) != 1:
        raise UserError(f"{what} {text!r}: allowed are auto and one whole number")
    return int(parsed[0])


def names(what: str, text: str) -> tuple[str, ...]:
    """Read names separated by commas. Raises UserError for none."""
    found = tuple(filter(None, text.split(",")))
    if not found:
        raise UserError(f"{what} {text!r}: allowed are names separated by commas")
    return found


Chunk = Annotated[
    int | None, Told("Tokens to prefill at a time; auto: all, less when memory runs out.", "N|auto", auto)
]
LimitTokens = Annotated[
    int | None,
    Told(
        "At most N tokens a model and setting: whole trials (documents) are dropped first, then the longest lengths.",
        "N",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every probe takes: the setting that models are put in, and how they are run."""

    attention: Annotated[
        str | Sequence[str | None] | None,
        Told(
            "Swap the attention mechanism; repeatable. `ssmax-eval mechanisms` lists them. Default: the model's own.",
            "NAME[:key=value,...]",
            repeated=True,
        ),
    ] = None
    rope_theta: Annotated[float | None, Told("Absolute RoPE theta.")] = None
    rope_theta_factor: Annotated[
        float | Sequence[float], Told("Multiply RoPE theta; several values are an axis.", "X[,X...]", one_or_more)
    ] = 1.0
    rope_scaling: Annotated[
        str | None, Told("linear, ntk, ntk-by-parts, dynamic or yarn, for example yarn:4.", "TYPE:FACTOR")
    ] = None
    position: Annotated[
        str | None, Told("In RoPE's place: nope (no position) or alibi. Default: the model's own.", "NAME")
    ] = None
    device: Annotated[str, Told("auto, cpu, cuda, cuda:N or mps.")] = "auto"
    device_map: Annotated[
        str | dict[str, Any] | None,
        Told("Spread a model that is larger than one device over all of them, memory and disk.", "auto"),
    ] = None
    dtype: Annotated[str, Told("auto, float32, bfloat16 or float16.")] = "auto"
    # options of the probes that take them, declared anew with how they are told of
    batch_size: int | None = None
    chunk: int | None = None
    limit_tokens: int | None = None
    seed: Annotated[int, Told("Decides all that is drawn: cities, values, haystacks, documents.")] = SEED
    output_path: Annotated[str | Path, Told("Where runs are stored.")] = Path("results")
    dry_run: Annotated[bool, Told("The plan and what it costs; no weights are loaded, nothing is written.")] = False
    fresh: Annotated[bool, Told("Start over instead of finishing what is there.")] = False
    trust_remote_code: Annotated[bool, Told("Run code that a checkpoint brings.")] = False
    tokenizer: Annotated[
        str | None, Told("Whose tokenizer counts the prompts of a function or a server; a server needs one.", "REF")
    ] = None

    def __post_init__(self) -> None:
        """Raise UserError for a value of another type; numpy's numbers and arrays become Python's."""
        for each in options_of(type(self)):
            object.__setattr__(self, each.name, typed(each, getattr(self, each.name)))


def typed(option: Field, value: Any) -> Any:
    """Return an option's value in Python's own types. Raises UserError for one that it cannot be."""
    if hasattr(value, "tolist"):  # numpy's, pandas's, torch's
        value = value.tolist()
    value = tuple(value) if isinstance(value, set | frozenset | range) else value
    if value == "" or (isinstance(value, tuple | list) and "" in value):
        raise UserError(
            f"{option.name.replace('_', ' ')} {value!r}: an empty text says nothing; leave it out, or give one"
        )
    if isinstance(value, Path) and Path in get_args(option.type):
        return value
    kinds = tuple(
        kind for kind in (get_args(option.type) if is_union(option.type) else (option.type,)) if kind is not Path
    )
    try:
        msgspec.convert(value, Union[kinds])  # noqa: UP007  (made of types that are known here alone)
    except msgspec.ValidationError as error:
        allowed = " or ".join(WORDS.get(kind, WORDS.get(get_args(kind)[:1], "text")) for kind in kinds)
        raise UserError(f"{option.name.replace('_', ' ')} {value!r}: allowed is {allowed}") from error
    return value


def is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", bool: "True or False", str: "text", NoneType: "None",
    (int,): "several whole numbers", (float,): "several numbers", (str,): "several texts",
    (str | None,): "several texts", (str, Any): "a map",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the command line alone takes: how what was found is shown."""

    report: Annotated[bool, Told("Write the HTML report.")] = True
    tables: Annotated[str | Path | None, Told("Also write every table here, as CSV and LaTeX.", "DIR")] = None
    json: Annotated[bool, Told("Print one JSON object instead of tables.")] = False


def several(value: str | Sequence[str | None] | None) -> Sequence[Any]:
    """Return one value, several or none as several."""
    return () if value is None else (value,) if isinstance(value, str) else value


def in_words(value: Any) -> str:
    """Write an option's value as the command line takes it."""
    if isinstance(value, tuple | list):
        return ",".join(in_words(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def options_of(*groups: type[Any]) -> Iterator[Field]:
    """Yield the options of dataclasses whose fields say how they are told of, each once, in their order."""
    seen = set()
    for group in groups:
        hints = get_type_hints(group, include_extras=True)
        for each in fields(group):
            told = next((part for part in get_args(hints[each.name])[1:] if isinstance(part, Told)), None)
            if told is not None and each.name not in seen:
                seen.add(each.name)
                yield Field(each.name, get_args(hints[each.name])[0], each.default, told)


def chosen(group: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the given values that are options of one dataclass."""
    own = {each.name for each in options_of(group)}
    return {name: value for name, value in given.items() if name in own}
