"""A YAML file's values with the lines of their keys, so that an error says where."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from .errors import UserError, refuse_half_characters

OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-9.]+)+")  # YAML 1.1 reads 010 as 8 and 1:00 as 60
HEAD = 40  # characters of an error in which it names what is wrong


class Value(NamedTuple):
    """A value of the file, and the line of its key."""

    value: Any
    line: int


@contextmanager
def at(file: Path, line: int, lines: Mapping[str, int] | None = None) -> Iterator[None]:
    """Put file and line in front of a block's UserError: the line of the option that it names first, else the one given."""
    try:
        yield
    except UserError as error:
        text = str(error)
        words = {name: name.replace("_", " ") for name in lines or {}}
        head = f" {text}"[:HEAD]
        named = [name for name, each in words.items() if f" {each} " in head or f" {each.removesuffix('s')} " in head]
        where = (lines or {})[max(named, key=len)] if named else line
        raise UserError(f"{file}, line {where}: {text}") from error


def values_in(node: Any, known: dict[int, float]) -> float:
    """Return how many values a node holds with all that anchors repeat; infinite for one inside itself. known: of nodes met before.

    Raises UserError for a text that nothing can hold, a number that YAML reads otherwise than it looks, and a key given twice.
    """
    if isinstance(node, yaml.ScalarNode):
        refuse_half_characters(f"line {node.start_mark.line + 1}: text", node.value)
        if node.tag.endswith((":int", ":float")) and OTHER_BASE.fullmatch(node.value):
            raise UserError(
                f"line {node.start_mark.line + 1}: number {node.value!r}: YAML reads it to base 8 or 60; write it without zeros in "
                "front and without colons, or in quotes"
            )
    if id(node) not in known:
        known[id(node)] = math.inf
        if isinstance(node, yaml.MappingNode):
            refuse_twice([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = chain(*inner) if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(values_in(each, known) for each in parts)
    return known[id(node)]


def refuse_twice(keys: list[Any], same: Callable[[str], str] = str) -> None:
    """Raise UserError for a key that a map has twice, of which YAML would take the last. same: what makes equal ones equal."""
    seen: set[str] = set()
    for key in keys:
        if (name := same(key.value)) in seen and name != "<<":
            raise UserError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice; give it once")
        seen.add(name)


def mapping(loader: yaml.SafeLoader, node: Any, file: Path, what: str) -> dict[str, Value]:
    """Return the keys of a YAML mapping, each with its value and line. Raises UserError for anything else, and for a key given twice."""
    if not isinstance(node, yaml.MappingNode):
        line = 1 if node is None else node.start_mark.line + 1
        raise UserError(f"{file}, line {line}: {what} is {kind_of(node)}: allowed is a map of keys and values")
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{file}, line {key.start_mark.line + 1}: a key is {kind_of(key)}: allowed is a word")
    refuse_twice([key for key, _ in node.value], dashless)
    loader.flatten_mapping(node)  # <<: *base
    return {
        dashless(str(key.value)): Value(value_of(loader, each), key.start_mark.line + 1) for key, each in node.value
    }


def value_of(loader: yaml.SafeLoader, node: Any) -> Any:
    """Return a node's value. Raises YAMLError, with its place, for whatever a tag's constructor raises: `!!timestamp x`, `!!bool x`."""
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, RecursionError):
        raise
    except Exception as error:
        tag = node.tag.rpartition(":")[2]
        raise yaml.MarkedYAMLError(problem=f"{error}; its tag is {tag}", problem_mark=node.start_mark) from error


def dashless(name: str) -> str:
    return name.replace("-", "_")


def kind_of(node: Any) -> str:
    return "empty" if node is None or node.value == "" else "a list" if isinstance(node, yaml.SequenceNode) else "text"
