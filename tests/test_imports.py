"""Imports go one way, floor by floor: no circle, no arrow up, whether at the top of a file or inside a function."""

import ast
from pathlib import Path

import ssmax_eval

TOP = Path(ssmax_eval.__file__).parent
# rooms (a folder, or a file beside them) from the ground up; a room imports from its own and from lower floors only
FLOORS = (
    ("errors", "printable", "rows", "record"),
    ("yaml_lines", "own_file"),
    ("disk", "launch", "progress", "statistics", "data", "position"),
    ("quiet", "stopping", "store", "processes", "verdict", "mechanisms"),
    ("headline",),
    ("report.figures",),
    ("report.context",),
    ("report.section",),  # what the probes' sections are made of; the page, above, is made of them
    ("setting", "models", "environment", "timing"),
    ("readers",),
    ("training",),
    ("probes", "provenance"),
    ("plans",),
    ("cost",),
    ("run", "dry_run", "harness", "packs", "sweep"),
    ("results",),
    ("report",),
    ("api", "terminal", "studies"),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules():
    """Return the file of every module of the package, by its name."""
    return {
        name_of(path): path for path in TOP.rglob("*.py") if not {"bundled", "tasks"} & {*path.relative_to(TOP).parts}
    }


def name_of(path):
    parts = path.relative_to(TOP.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(name, path, known, typing=True):
    """Return the modules of the package that a file imports, wherever in it; without `typing` what runs alone."""
    package = (name if path.name == "__init__.py" else name.rpartition(".")[0]).split(".")
    found = set()
    tree = ast.parse(path.read_text())
    unrun = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in unrun:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module.partition(".")[0] == package[0]:
                found |= {each if (each := f"{module}.{alias.name}") in known else module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == package[0]}
    return found - {name}


def room(name):
    """Return the room of a module: its folder or file, or a part of one that has a floor of its own."""
    parts = [*name.split("."), "__init__"][1:3]
    inner = ".".join(parts)
    return inner if inner in FLOOR else parts[0]


def test_no_arrow_goes_up():
    known = modules()
    assert {room(name) for name in known} == set(FLOOR)  # each room has its floor
    up = [
        f"{name} -> {other}"
        for name, path in known.items()
        for other in imports(name, path, known)
        if room(name) != room(other) and FLOOR[room(other)] >= FLOOR[room(name)]
    ]
    assert up == []


def test_no_circle_inside_a_room():
    known = modules()
    graph = {name: imports(name, path, known) for name, path in known.items()}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name not in done:
            open_.append(name)
            for other in sorted(graph.get(name, ())):
                visit(other)
            done.add(open_.pop())

    for name in sorted(graph):
        visit(name)


def is_of_the_page(name):
    """Tell whether a module is a probe's part of the page, or what the page reads of a probe."""
    return name.startswith("ssmax_eval.probes") and not name.endswith(
        (
            ".probe",
            ".asked",
            ".grid",
            ".branches",
            ".key_tokens",
            ".masses",
            ".readings",
            ".tail",
            ".restore",
            ".budget",
            ".checks",
            ".by_model",
        )
    )


def test_a_probes_numbers_and_the_page_need_no_torch():
    """Of what they import, as far as it goes."""
    known = modules()
    graph = {name: imports(name, path, known, typing=False) for name, path in known.items()}
    for start in (
        name
        for name in known
        if is_of_the_page(name) or room(name) in ("statistics", "verdict", "headline", "report", "store", "results")
    ):
        reached, new = set(), {start}
        while new:
            reached |= new
            new = {other for name in new for other in graph[name]} - reached
        heavy = {
            name
            for name in reached
            if any(f"import {each}" in known[name].read_text() for each in ("torch", "transformers"))
        }
        assert heavy == set(), start


def test_no_module_is_called_what_says_nothing():
    assert {name.rpartition(".")[2] for name in modules()} & {
        "utils",
        "common",
        "helpers",
        "manager",
        "engine",
    } == set()
