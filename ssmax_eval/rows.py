"""Rows: what a probe stores of each sample. A probe's rows.py names its columns; store, tables and documents read them there."""

import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

Fields = dict[str, Any]  # a row as JSON has it
# by probe, the column that its rows are told by (Row.told_by), as probes/__init__.py finds them
TOLD_BY: dict[str, str] = {}
Text = str | None
Number = float | None
WHO = "label, hash of the weights, and what they were run in"
MECHANISM = "the mechanism, and whether it was put in at eval time"
ROPE = "RoPE in words; the effective theta; what was asked for"


class Row(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every row tells. A column without a default has to be there; one with a default came later than the first runs.

    told_by: the column that a table has these rows by, where it does not say of which probe they are. before: columns of older
    runs that are no longer read. details: columns that tell of a single row, and that no table of numbers is made of. score: the
    column without a value exactly where `error` says why.
    """

    told_by: ClassVar[str] = "sample"
    before: ClassVar[frozenset[str]] = frozenset()
    details: ClassVar[frozenset[str]] = frozenset()
    score: ClassVar[str | None] = None

    sample: Annotated[str, Meta(description="the sample's name in its run")]
    model: Annotated[str, Meta(description=WHO)]
    fingerprint: Annotated[Text, Meta(description=WHO)] = None
    dtype: Annotated[Text, Meta(description=WHO)] = None
    attention: Annotated[Text, Meta(description=MECHANISM)]
    attention_swapped: Annotated[bool, Meta(description=MECHANISM)] = False
    rope: Annotated[str, Meta(description=ROPE)]
    rope_theta: Annotated[Number, Meta(description=ROPE)] = None
    rope_theta_factor: Annotated[Number, Meta(description=ROPE)] = None
    rope_scaling: Annotated[Text, Meta(description=ROPE)] = None
    context_length: Annotated[int, Meta(description="tokens of the whole prompt or document, answer included", ge=0)]
    seed: Annotated[int | None, Meta(description="decides all that is drawn")] = None
    error: Annotated[Text, Meta(description="why there is no score, else null: a failed sample is never a wrong one")]

    def __post_init__(self) -> None:
        """Raise ValueError for a row that has a score and a reason for none, or neither."""
        if self.score is not None and (getattr(self, self.score) is None) == (self.error is None):
            raise ValueError(
                f"{self.score} is {getattr(self, self.score)} and error {self.error!r}: a row has one of them"
            )


@cache
def columns(schema: type[Row]) -> dict[str, tuple[Any, str]]:
    """Return each column's type and description, in the order of the schema."""
    hints = get_type_hints(schema, include_extras=True)
    out = {}
    for name in schema.__struct_fields__:
        hint = hints[name]
        told = [each.description for each in get_args(hint)[1:] if isinstance(each, Meta) and each.description]
        out[name] = (get_args(hint)[0] if get_origin(hint) is Annotated else hint, "; ".join(told))
    return out


def table(schema: type[Row]) -> Iterator[tuple[list[str], str]]:
    """Yield the columns that a schema adds to its parent's, those of one description together, and what they are."""
    parent = schema.__mro__[1]
    theirs = columns(parent) if issubclass(parent, Row) else {}
    own = [(name, description) for name, (_, description) in columns(schema).items() if name not in theirs]
    for description, group in groupby(own, key=itemgetter(1)):
        yield [name for name, _ in group], description


@cache
def decoder(schema: type[Row]) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(schema)


def fields_of(row: Any, schema: type[Row]) -> Fields:
    """Return a row without what is not read of it: columns of older runs, and of a probe that is not known here its own."""
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    if schema is Row:
        return {name: value for name, value in row.items() if name in columns(Row)}
    return {name: value for name, value in row.items() if name not in schema.before} if schema.before else row


def in_words(error: Exception) -> str:
    """Return what is wrong with JSON values, where they are first."""
    text = str(error)
    what, _, path = text.partition(" - at `$")
    place = path.rstrip("`").lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        return f"{'.'.join(filter(None, [place, missing[1]]))} is missing"
    return f"{place}: {what}" if place else text


def checked(row: Any, schema: type[Row]) -> Row:
    """Return a row as its schema has it. Raises ValueError for one that is not as that says."""
    return msgspec.convert(fields_of(row, schema), schema)


def read(line: bytes, schema: type[Row]) -> Row:
    """Return a line of rows.jsonl. Raises ValueError for one that is not as the schema says."""
    try:
        found: Row = decoder(schema).decode(line)
    except msgspec.ValidationError:
        found = checked(msgspec.json.decode(line), schema)
    return found


def line_of(row: Fields) -> bytes:
    """Return a row as its line of rows.jsonl."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()
