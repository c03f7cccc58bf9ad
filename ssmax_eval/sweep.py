"""A sweep: probes, models, settings and tasks in one YAML file, read with the line of every key, and checked before anything runs.

    models: [softmax-bible-2m, Mine=./my-model]
    attention: [softmax, ssmax]     # an option of all entries whose probe takes it
    runs:
      - probe: needle
        task: [single, multikey]    # several values where an option takes one: an entry for each
      - probe: loss
        models: [Mine=./my-model]   # an entry's own goes before
        documents: 16

Option names are the command line's. A text is read as it is there (`1024,4096`, `auto`); anything else is a value as Python takes it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from .disk import bytes_in
from .errors import UserError, nearest
from .models.sources import PAIR
from .models.subjects import RunOptions
from .plans import PlannedRun, how_asked, planned_runs, settings_asked
from .probes import PROBES
from .probes.kind import Kind, Probe
from .probes.options import Field, Options, is_union, options_of, typed
from .setting import Setting
from .store import run_id_of
from .yaml_lines import Value, at, mapping, values_in

OWN = ("models", "import", "runs")  # keys of the file that are no options
ON_THE_COMMAND_LINE = ("dry_run", "fresh", "json")
WHOLE = ("output_path", "report", "tables", "attended", "blow_up")  # of the sweep, not of an entry
MOST = 10_000  # values of a file, and entries that the lists of one make together
ONE = ("device", "device_map", "trust_remote_code", "tokenizer")  # options that are no axis


@dataclass(frozen=True)
class Asked:
    """One probe that a sweep asks for, with one value of each option, and where the file says so."""

    kind: Kind[Any]
    options: Options
    models: tuple[str, ...]
    lines: Mapping[str, int]
    line: int


@dataclass(frozen=True)
class Sweep:
    """What a file asks for. imports: files that register mechanisms. whole: options of the sweep (WHOLE)."""

    file: Path
    asked: list[Asked]
    imports: list[Path]
    whole: dict[str, Any]


@dataclass(frozen=True)
class Together:
    """Probes that are run with one loading of their models."""

    models: tuple[str, ...]
    settings: list[Setting]
    how: RunOptions
    probes: list[Probe] = field(default_factory=list)
    plans: list[PlannedRun] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)  # by whom each probe is


def read_sweep(file: Path) -> Sweep:
    """Read a sweep. Raises UserError, with file and line, for what cannot be asked; no model is opened."""
    try:
        loader = yaml.SafeLoader(bytes_in(file).decode())
        node = loader.get_single_node()
        if values_in(node, {}) > MOST:
            raise UserError(f"{file}: it holds more than {MOST:,} values, those that an anchor repeats too; give fewer")
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        runs = next((each for key, each in pairs if key.value == "runs"), None)
        nodes = runs.value if isinstance(runs, yaml.SequenceNode) else []
        listed = [mapping(loader, each, file, "an entry of runs") for each in nodes]
        top = mapping(loader, node, file, "the sweep")
    except OSError as error:
        raise UserError(f"sweep {str(file)!r}: cannot be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            if str(error).startswith(str(file)):
                raise
            raise UserError(f"{file}, {error}") from error
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"{file}{where}: no YAML ({getattr(error, 'problem', None) or error})") from error
    if not listed:
        line = top["runs"].line if "runs" in top else 1
        raise UserError(f"{file}, line {line}: runs: allowed is a list of entries, for example `- probe: needle`")
    lines = [each.start_mark.line + 1 for each in nodes]
    kinds = [kind_asked(entry, file, line) for entry, line in zip(listed, lines, strict=True)]
    whole, common = options_of_all(top, kinds, file)
    asked = [
        one
        for kind, entry, line in zip(kinds, listed, lines, strict=True)
        for one in asked_by(kind, common, entry, line, file)
    ]
    imports = top.get("import", Value([], 1))
    return Sweep(file, asked, [Path(each) for each in texts("import", imports, file)], whole)


def kind_asked(entry: Mapping[str, Value], file: Path, line: int) -> Kind[Any]:
    """Return the probe that an entry names. Raises UserError."""
    name = entry.get("probe", Value(None, line))
    if name.value not in PROBES:
        near = nearest(name.value, PROBES) if isinstance(name.value, str) else ""
        what = "is missing" if name.value is None else repr(name.value)
        raise UserError(f"{file}, line {name.line}: probe {what}: allowed are {', '.join(PROBES)}{near}")
    return PROBES[name.value]


def options_of_all(
    top: Mapping[str, Value], kinds: Sequence[Kind[Any]], file: Path
) -> tuple[dict[str, Any], dict[str, Value]]:
    """Return the options of the whole sweep, and those of all its entries. Raises UserError for a key that is neither."""
    shown = {each.name: each for each in options_of(*(kind.shown for kind in kinds))}
    taken = {each.name for kind in kinds for each in options_of(kind.options)}
    whole: dict[str, Any] = {}
    common: dict[str, Value] = {}
    for name, given in top.items():
        if name in WHOLE and name in taken | set(shown):
            known = shown | {each.name: each for each in options_of(Options)}
            with at(file, given.line):
                whole[name] = typed(known[name], given.value)
        elif name in taken | {"models"} and name not in ON_THE_COMMAND_LINE:
            common[name] = given
        elif name not in OWN:
            refuse(name, given.line, [*taken, *WHOLE, *OWN], "the sweep's probes", file)
    return whole, common


def refuse(name: str, line: int, allowed: Sequence[str], whose: str, file: Path) -> None:
    """Raise UserError for a key that is not taken there."""
    if name in ON_THE_COMMAND_LINE:
        raise UserError(f"{file}, line {line}: {name}: give --{name.replace('_', '-')} on the command line")
    if name in WHOLE:
        raise UserError(f"{file}, line {line}: {name}: it is the whole sweep's; put it beside runs")
    known = sorted({*allowed} - {*ON_THE_COMMAND_LINE})
    raise UserError(
        f"{file}, line {line}: key {name!r}: no option of {whose}{nearest(name, known) or f'; allowed are {chr(44).join(known)}'}"
    )


def asked_by(
    kind: Kind[Any], common: Mapping[str, Value], entry: Mapping[str, Value], line: int, file: Path
) -> Iterator[Asked]:
    """Yield what one entry asks for: each combination of the values of options that take one."""
    takes = {each.name: each for each in options_of(kind.options)}
    for name, wrong in entry.items():
        if name not in {"probe", "models", *takes} or name in (*WHOLE, *ON_THE_COMMAND_LINE):
            refuse(name, wrong.line, [*({*takes} - {*WHOLE}), "models", "probe"], f"probe {kind.name}", file)
    both: dict[str, Value] = {**common, **entry}
    given = {name: each for name, each in both.items() if name in takes}
    models = both.get("models", Value([*PAIR], line))
    named = texts("models", models, file)
    lines = {name: each.line for name, each in given.items()} | {"model": models.line, "models": models.line}
    axes = {name: values(takes[name], each, file) for name, each in given.items()}
    if (count := math.prod(map(len, axes.values()))) > MOST:
        raise UserError(f"{file}, line {line}: its lists make {count:,} entries together; at most {MOST:,} are taken")
    for chosen in product(*axes.values()):
        with at(file, line, lines):
            options = kind.options(**dict(zip(axes, chosen, strict=True)))
        yield Asked(kind, options, named, lines, line)


def texts(name: str, given: Value, file: Path) -> tuple[str, ...]:
    """Return a text, several, or {label: text}, as several texts. Raises UserError."""
    found = given.value
    if isinstance(found, dict):
        found = [f"{label}={each}" if isinstance(each, str) else each for label, each in found.items()]
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(each, str) and each for each in found):
        raise UserError(f"{file}, line {given.line}: {name} {given.value!r}: allowed are texts, one or a list")
    if name == "models" and not found:
        raise UserError(f"{file}, line {given.line}: models: none; give at least one")
    return tuple(found)


def values(option: Field, given: Value, file: Path) -> list[Any]:
    """Return the values that an option is to have, one after the other: a list where it takes one value is an axis."""
    is_axis = isinstance(given.value, list) and not takes_several(option)
    with at(file, given.line):
        if is_axis and (option.name in ONE or not given.value):
            raise UserError(f"{option.name.replace('_', ' ')} {given.value!r}: allowed is one value")
        return [parsed(option, each) for each in (given.value if is_axis else [given.value])]


def parsed(option: Field, value: Any) -> Any:
    """Return a value as the options take it: a text is read as on the command line where that reads it. Raises UserError."""
    if isinstance(value, str) and option.told.parse is not None:
        return option.told.parse(option.name.replace("_", " "), value)
    kinds = get_args(option.type) if is_union(option.type) else (option.type,)
    if isinstance(value, str) and float in kinds and str not in kinds:
        with suppress(ValueError):  # YAML takes 5e5 for a text
            value = float(value)
    return typed(option, value)


def takes_several(option: Field) -> bool:
    """Tell whether an option's value can be several."""
    kinds = get_args(option.type) if is_union(option.type) else (option.type,)
    return any(get_origin(kind) is not None and get_origin(kind) is not dict for kind in kinds)


def planned(sweep: Sweep, output_path: Path, fresh: bool = False) -> list[Together]:
    """Return a sweep's runs, those together whose models are loaded alike; each run once. Raises UserError, with file and line.

    Nothing is loaded or written.
    """
    groups: dict[str, Together] = {}
    known: set[Path] = set()
    for each in sweep.asked:
        with at(sweep.file, each.line, each.lines):
            models = each.models
            how = replace(how_asked(each.options), output_path=output_path, fresh=fresh)
            settings = settings_asked(each.options)
            probe = each.kind.make([*models], each.options)
            plans = planned_runs([probe], [*models], settings, how)
        key = run_id_of({"models": models, "settings": [*map(str, settings)], "how": str(how)})
        group = groups.setdefault(key, Together(models, settings, how))
        if new := [plan for plan in plans if plan.run.folder not in known]:
            known |= {plan.run.folder for plan in new}
            group.probes.append(probe)
            group.asked.append(each)
            group.plans.extend(new)
    return [group for group in groups.values() if group.probes]


def where(sweep: Sweep, groups: Sequence[Together], probe: Probe) -> AbstractContextManager[None]:
    """Return what puts the file and line of the entry that asks for a probe in front of a block's UserError."""
    pairs = (pair for group in groups for pair in zip(group.probes, group.asked, strict=True))
    entry = next(entry for each, entry in pairs if each is probe)
    return at(sweep.file, entry.line, entry.lines)
