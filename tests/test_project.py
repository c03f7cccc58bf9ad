"""What the project says of itself: dependencies, licence, citation, checks; and what ships."""

import ast
import re
import sys
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
# extras of those who work on the project; ssmax_eval/ imports none of them
TOOLS = ("test", "browser")
# declared, though ssmax_eval/ does not import it, and why
NOT_IMPORTED: dict[str, str] = {}  # what is declared and not imported here, and why

DISTRIBUTIONS = {"yaml": "pyyaml"}  # of modules that are named otherwise


def plain(name):
    """Return a distribution's or module's name in the one form that both can take."""
    return re.sub(r"[-_.]+", "_", name).lower()


def declared(requirements):
    return {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def imported():
    """Return the foreign packages that ssmax_eval/ imports, each with the files that do."""
    found = defaultdict(set)
    for file in (ROOT / "ssmax_eval").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                module = plain(name.partition(".")[0])
                found[DISTRIBUTIONS.get(module, module)].add(str(file.relative_to(ROOT)))
    ours = {"ssmax_eval", *map(plain, sys.stdlib_module_names)}
    return {name: files for name, files in found.items() if name not in ours}


REQUIRED = declared(PROJECT["dependencies"])
OPTIONAL = declared(line for extra, lines in EXTRAS.items() if extra not in TOOLS for line in lines)


def test_what_is_imported_is_declared():
    missing = {name: files for name, files in imported().items() if name not in REQUIRED | OPTIONAL}
    assert not missing


def test_what_is_declared_is_imported():
    assert set(imported()) | set(NOT_IMPORTED) == REQUIRED | OPTIONAL
    assert not set(NOT_IMPORTED) & set(imported())  # a reason that no longer holds
    assert not REQUIRED & OPTIONAL


def test_optional_packages_are_imported_where_they_are_asked_for():
    """Importing a module of ours must not need an extra, but for lm-eval's own rooms."""
    for file in (ROOT / "ssmax_eval").rglob("*.py"):
        if "harness" in file.parts:
            continue
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert not {plain(name.partition(".")[0]) for name in names} & OPTIONAL, file


def test_every_requirement_has_a_lower_bound():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    assert [line for line in lines if ">=" not in line] == []


def test_the_licence_is_whole_and_named():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert "Apache License\n                           Version 2.0, January 2004" in text
    sections = re.findall(r"^   (\d)\. ", text, re.M)
    assert sections == list("123456789")
    assert "END OF TERMS AND CONDITIONS" in text
    assert "Copyright 2026 The ssmax_eval authors" in text


def test_the_types_ship():
    assert (ROOT / "ssmax_eval" / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["ssmax_eval"]


def test_the_wheel_holds_types_and_licence(tmp_path):
    builders = pytest.importorskip("hatchling.builders.wheel")
    builder = builders.WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    assert "ssmax_eval/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "ssmax_eval/tasks/ssmax_needle.yaml" in names


def test_the_citation_is_of_this_version_and_of_the_paper():
    """The fields that CFF 1.2.0 requires, of the software and of each reference."""
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= told.keys()
    assert told["cff-version"] == "1.2.0"
    assert told["type"] == "software"
    assert told["version"] == PROJECT["version"]
    assert told["license"] == PROJECT["license"]
    assert told["repository-code"] == PROJECT["urls"]["Repository"]
    assert told["authors"] == PROJECT["authors"]
    (paper,) = told["references"]
    assert {"authors", "title", "type"} <= paper.keys()
    assert paper["title"] == "Scalable-Softmax Is Superior for Attention"
    assert paper["authors"] == [{"family-names": "Nakanishi", "given-names": "Ken M."}]
    assert paper["year"] == 2025
    assert paper["identifiers"][0]["value"] == "arXiv:2501.19399"


def test_pre_commit_and_ci_run_the_same_checks():
    yaml = pytest.importorskip("yaml")
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    hooks = [hook["entry"] for hook in repository["hooks"]]
    assert hooks == ["ruff check", "ruff format --check", "mypy"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    # YAML 1.1 reads the key `on` as true
    assert set(workflow[True]) == {"push", "pull_request", "schedule"}
    jobs = workflow["jobs"]
    steps = {name: [step.get("run", "") for step in job["steps"]] for name, job in jobs.items()}
    assert [step for step in steps["lint"] if step.startswith(tuple(hooks))] == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
    ]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert "pytest" in steps["tests"]
    assert any("-m slow" in step for step in steps["nightly"])
    assert any("test_sweep" in what for what in jobs["nightly"]["strategy"]["matrix"]["what"])


def test_versions_of_python_agree():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in PROJECT["classifiers"]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
