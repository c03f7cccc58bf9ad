"""Mechanisms of a user's own: from a file on every command, in a checkpoint, from an installed package."""

import importlib
import json
import linecache
import subprocess
import sys

import pytest
import torch
from test_cli import call
from test_readme import TINY

from ssmax_eval import UserError, load_model
from ssmax_eval.mechanisms.files import import_file
from ssmax_eval.mechanisms.registry import MECHANISMS, installed, mechanisms
from ssmax_eval.position.bias import BIASES, biases

FILE = '''
import torch
from ssmax_eval import Bias, Mechanism, register, register_bias
from ssmax_eval.mechanisms.mechanism import per_head

@register
class Own(Mechanism):
    """weights = sigmoid(factor z - ln n)"""
    name = "own-sigmoid"
    normalised = False

    def __init__(self, layer, *, factor: float = 1.0):
        super().__init__(layer)
        self.factor = per_head(factor, layer.heads)

    def weights(self, scores, seen):
        return torch.sigmoid(self.factor[:, None, None] * scores - seen.n.log()[..., None]).masked_fill(~seen.mask, 0)

@register_bias
class Root(Bias):
    """-sqrt(distance)"""
    name = "root"

    def forward(self, distance):
        return -distance.sqrt()
'''
GRID = ("--context-lengths", "96", "--depth-percents", "50", "--trials", "1", "--no-report")


@pytest.fixture
def own(tmp_path):
    """A file with a mechanism and a position, not imported yet; whatever is registered goes again."""
    before = dict(mechanisms()), dict(biases())  # all of the package's own
    path = tmp_path / "own.py"
    path.write_text(FILE)
    yield path
    forget(before)


def forget(before):
    """Be as a process in which no file was imported."""
    for table, old in zip((MECHANISMS, BIASES), before, strict=True):
        table.clear()
        table.update(old)
    for name in [name for name in sys.modules if name.startswith("ssmax_eval_imported") or name == "theirs"]:
        del sys.modules[name]


def test_every_command_with_attention_takes_import(own, checkpoint, capsys, tmp_path):
    asked = (
        "--model",
        checkpoint,
        "--import",
        own,
        "--attention",
        "own-sigmoid:factor=2",
        "--output-path",
        tmp_path / "out",
    )
    for command in (
        ("needle", *asked, *GRID),
        ("attention", *asked, *GRID, "--position", "root"),
        ("loss", *asked, "--context-length", "128", "--documents", "1", "--window", "16", "--no-report"),
        ("run", *asked, *GRID, "--documents", "1", "--window", "16"),
        (
            "retrofit",
            "--model",
            checkpoint,
            "--import",
            own,
            "--attention",
            "own-sigmoid",
            "--out",
            tmp_path / "retrofitted",
        ),
        ("mechanisms", "--import", own),
    ):
        code, out, err = call(capsys, *command)
        assert code == 0, err
        assert command[0] in ("retrofit", "loss") or "own-sigmoid" in out


def test_without_the_import_one_line_says_what_to_do(checkpoint, capsys, tmp_path):
    asked = ("--attention", "own-sigmoid", *GRID, "--output-path", tmp_path / "out")
    code, _, err = call(capsys, "needle", "--model", checkpoint, *asked)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "one of your own needs --import FILE.py" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("position", ["rope", "root"])
def test_a_trained_checkpoint_names_its_file_and_opens_with_it(own, tmp_path, capsys, position):
    out, before = tmp_path / "trained", (dict(MECHANISMS), dict(BIASES))
    small = [part for key, value in {**TINY, "position": position}.items() for part in ("--set", f"{key}={value}")]
    asked = ("--import", own, "--attention", "own-sigmoid:factor=0.5", *small, "--out", out)
    code, _, err = call(capsys, "train", "--recipe", "smoke", *asked)
    assert code == 0, err
    entry = json.loads((out / "config.json").read_text())["ssmax"]
    assert (entry["attention"], entry["source"]) == ("own-sigmoid:factor=0.5", ["own.py"])
    assert "--import own.py" in (out / "README.md").read_text()
    forget(before)
    told = ("needle", "--model", out, *GRID, "--output-path", tmp_path / "out")
    code, _, err = call(capsys, *told)
    assert code == 2
    assert "'own-sigmoid' is not this package's own; it comes from own.py: add --import own.py" in err
    code, _, err = call(capsys, *told, "--import", own, "--json")
    assert code == 0, err
    model, _ = load_model(str(out))
    mechanism = model.model.layers[0].self_attn.ssmax
    assert not torch.equal(mechanism.factor, torch.full_like(mechanism.factor, 0.5))  # it was trained
    assert getattr(mechanism.bias, "name", "rope") == position


def test_edited_files_are_other_runs(own, checkpoint, tmp_path, capsys):
    before = dict(MECHANISMS), dict(BIASES)
    asked = ("needle", "--model", checkpoint, "--import", own, "--attention", "own-sigmoid", *GRID, "--output-path")
    runs = []
    for factor in ("1.0", "1.5"):
        own.write_text(FILE.replace("factor: float = 1.0", f"factor: float = {factor}"))
        linecache.clearcache()
        assert call(capsys, *asked, tmp_path / "out")[0] == 0
        runs.append({path.parent.name for path in (tmp_path / "out").rglob("run.json")})
        forget(before)
    assert (len(runs[0]), len(runs[1])) == (1, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "it cannot be run (ZeroDivisionError"),
        ("def (", "it cannot be run (SyntaxError"),
        ("import sys; sys.exit(3)", "it cannot be run (SystemExit"),
        ("x = 1", "it registers no mechanism and no position"),
        (FILE.replace("own-sigmoid", "ssmax"), "mechanism 'ssmax': ssmax_eval has one of this name"),
        (FILE.replace('name = "root"', 'name = "alibi"'), "its name 'alibi' is none, or taken"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(own, text, says):
    own.write_text(text)
    with pytest.raises(UserError) as error:
        import_file(own)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        import_file(tmp_path / "none.py")
    (tmp_path / "own.txt").write_text(FILE)
    with pytest.raises(UserError, match="its name has to end in .py"):
        import_file(tmp_path / "own.txt")


def test_an_installed_package_brings_its_own(own, checkpoint, tmp_path, capsys, monkeypatch):
    """By an entry point of group ssmax_eval.mechanisms; one that cannot be imported is one line."""
    before, site = (dict(MECHANISMS), dict(BIASES)), tmp_path / "site"
    (site / "theirs-1.dist-info").mkdir(parents=True)
    (site / "theirs.py").write_text(FILE)
    (site / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    entry = site / "theirs-1.dist-info" / "entry_points.txt"
    monkeypatch.syspath_prepend(site)
    asked = ("needle", "--model", checkpoint, "--attention", "own-sigmoid", *GRID, "--output-path", tmp_path / "out")
    try:
        for module, right, says in (("theirs", 0, ""), ("nowhere", 2, "mechanisms of 'nowhere': cannot be imported")):
            entry.write_text(f"[ssmax_eval.mechanisms]\nown = {module}\n")
            importlib.invalidate_caches()
            forget(before)
            installed.cache_clear()
            code, _, err = call(capsys, *asked)
            assert code == right, err
            assert says in err
    finally:
        installed.cache_clear()


def test_imported_in_a_process_of_its_own(own, checkpoint, tmp_path):
    """Where nothing was imported before, as a user's is."""
    options = (*GRID, "--output-path", tmp_path / "out", "--json")
    command = ["needle", "--model", checkpoint, "--import", own, "--attention", "own-sigmoid", *options]
    done = subprocess.run(
        [sys.executable, "-m", "ssmax_eval", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "own-sigmoid" in done.stdout
