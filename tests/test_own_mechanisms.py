"""Mechanisms of a user's own: from a file on every command, in a checkpoint, from an installed package."""

import importlib
import json
import linecache
import subprocess
import sys

import pytest
import torch
from own import FILE, forget
from test_cli import call
from test_readme import TINY
from tiny import build

from ssmax_eval import Setting, UserError, attach, load_model, save_model
from ssmax_eval.mechanisms.attach import mechanisms_of
from ssmax_eval.mechanisms.files import import_file
from ssmax_eval.mechanisms.registry import MECHANISMS, installed, mechanisms
from ssmax_eval.mechanisms.spelling import EXAMPLE
from ssmax_eval.position.bias import BIASES, biases

GRID = ("--context-lengths", "96", "--depth-percents", "50", "--trials", "1", "--no-report")


@pytest.fixture
def own(tmp_path):
    """A file with a mechanism and a position, not imported yet; whatever is registered goes again."""
    before = dict(mechanisms()), dict(biases())  # all of the package's own
    path = tmp_path / "own.py"
    path.write_text(FILE)
    yield path
    forget(before)


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
    assert getattr(mechanism.position_bias, "name", "rope") == position


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


def needle_runs(capsys, checkpoint, folder, *options):
    """Run a small needle and return the ids of all runs in a folder."""
    code, _, err = call(capsys, "needle", "--model", checkpoint, *GRID, "--output-path", folder, *options)
    assert code == 0, err
    return {path.parent.name for path in folder.rglob("run.json")}


def test_edited_helpers_and_biases_are_other_runs(own, checkpoint, tmp_path, capsys):
    """All of the file counts, not the class alone; the earlier text again is the earlier run again."""
    helper = FILE.replace("torch.sigmoid(", "sharp(").replace(
        "@register\n", "def sharp(z):\n    return torch.sigmoid(z * 2)\n\n@register\n", 1
    )
    texts = (helper, helper.replace("z * 2", "z * 5"), helper)
    counts, written = [], []
    for text in texts:
        own.write_text(text)
        written.append(needle_runs(capsys, checkpoint, tmp_path / "m", "--import", own, "--attention", "own-sigmoid"))
        counts.append(len(written[-1]))
    assert counts == [1, 2, 2]
    counts = []
    for text in (FILE, FILE.replace("-distance.sqrt()", "-5 * distance.sqrt()")):
        own.write_text(text)
        counts.append(len(needle_runs(capsys, checkpoint, tmp_path / "p", "--import", own, "--position", "root")))
    assert counts == [1, 2]
    (record, *_) = [json.loads(path.read_text()) for path in (tmp_path / "m").rglob("run.json")]
    assert set(record["attention"]["files"]) == {"own.py"}


def test_earlier_content_again_is_registered_again(own, monkeypatch):
    """In a notebook a file is edited and imported again, and again as it was: within a second, of the same size, as Python caches."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    seen = []
    for factor in ("1.0", "3.0", "1.0"):
        own.write_text(FILE.replace("factor: float = 1.0", f"factor: float = {factor}"))
        import_file(own)
        seen.append(MECHANISMS["own-sigmoid"](EXAMPLE).factor[0].item())
    assert seen == [1, 3, 1]
    assert not [*own.parent.rglob("__pycache__")]


def test_two_files_with_one_name_are_refused_and_nothing_is_half_registered(own, tmp_path):
    import_file(own)
    other = tmp_path / "other.py"
    other.write_text(FILE.replace('name = "root"', 'name = "other-root"'))
    with pytest.raises(UserError, match="'own-sigmoid' is registered already"):
        import_file(other)
    assert "other-root" not in biases()
    broken = tmp_path / "broken.py"
    broken.write_text(FILE.replace("own-sigmoid", "half").replace('name = "root"', 'name = "half-root"') + "\n1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        import_file(broken)
    assert "half" not in mechanisms()
    assert MECHANISMS["own-sigmoid"].__module__.startswith("ssmax_eval_imported")


def test_edited_code_is_another_training(own, tmp_path, capsys):
    small = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    asked = (
        "train",
        "--recipe",
        "smoke",
        "--import",
        own,
        "--attention",
        "own-sigmoid",
        *small,
        "--out",
        tmp_path / "out",
    )
    assert call(capsys, *asked)[0] == 0
    assert call(capsys, *asked)[0] == 0  # finished: left alone
    own.write_text(FILE.replace("factor: float = 1.0", "factor: float = 1.5"))
    code, _, err = call(capsys, *asked)
    assert code == 2
    assert "out" in err


def test_processes_side_by_side_import_the_file_too(own, tmp_path, capsys):
    small = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    asked = ("--import", own, "--attention", "own-sigmoid", "--attention", "softmax", "--jobs", "2")
    code, _, err = call(capsys, "train", "--recipe", "smoke", *asked, *small, "--out", tmp_path / "both")
    assert code == 0, err
    assert len(list((tmp_path / "both").glob("*/model.safetensors"))) == 2


FAULTY = '''
import torch
from ssmax_eval import Mechanism, QueryScale, register

@register
class Faulty(QueryScale):
    """C = s, wrong in one of several ways"""
    name = "faulty"

    def __init__(self, layer, *, count: int = 3):
        super().__init__(layer)
        {constructor}

    def forward(self, n):
        {forward}
'''


@pytest.mark.parametrize(
    ("constructor", "forward", "says"),
    [
        ("raise ValueError('count must be even')", "return n", "it cannot be made (ValueError: count must be even)"),
        ("pass", "return n[:, :, :3]", "attention faulty: it cannot be run (RuntimeError"),
        ("pass", "return {}['missing']", "attention faulty: it cannot be run (KeyError: 'missing')"),
        ("pass", "return torch.topk(n, count=1)", "attention faulty: it cannot be run (TypeError"),
    ],
)
def test_what_a_mechanism_raises_is_one_line_that_names_it(
    own, checkpoint, capsys, tmp_path, constructor, forward, says
):
    """On the command line and in training, before anything is written."""
    own.write_text(FAULTY.format(constructor=constructor, forward=forward))
    asked = ("--import", own, "--attention", "faulty")
    small = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    for command in (
        ("needle", "--model", checkpoint, *asked, *GRID, "--output-path", tmp_path / "out"),
        ("train", "--recipe", "smoke", *asked, *small, "--out", tmp_path / "model"),
    ):
        code, _, err = call(capsys, *command)
        assert code == 2
        assert len([line for line in err.splitlines() if "error" in line]) == 1
        assert says in err
    assert not (tmp_path / "model" / "training.json").exists()


def test_whole_options_and_a_parameter_called_bias(own, checkpoint, capsys, tmp_path):
    """An option annotated int arrives as one; no name that a formula would use is taken by the base class."""
    own.write_text(
        FAULTY.format(
            constructor="self.count, self.bias = [0] * count, torch.nn.Parameter(torch.zeros(layer.heads))",
            forward="return n.log() + self.bias[:, None] + len(self.count)",
        )
    )
    asked = ("needle", "--model", checkpoint, "--import", own, *GRID, "--output-path", tmp_path / "out", "--attention")
    assert call(capsys, *asked, "faulty:count=2")[0] == 0
    code, _, err = call(capsys, *asked, "faulty:count=2.5")
    assert code == 2
    assert "attention option count=2.5 of faulty: allowed are whole numbers" in err


JUNK = [
    ({"attention": ["ssmax"]}, "names no attention mechanism"),
    ([], "names no attention mechanism"),
    ({"attention": "softmax"}, "names softmax, which is a plain model's"),
    ({"attention": "ssmax", "source": 7}, "source 7 in the 'ssmax' entry"),
    ({"attention": "ssmax", "source": "x.py"}, "source 'x.py' in the 'ssmax' entry"),
    ({"attention": "ssmax", "position": ["alibi"]}, "position .'alibi'. in the 'ssmax' entry"),
    ({"attention": "ssmax", "position": {}}, "position {} in the 'ssmax' entry"),
    ({"attention": "ssmax", "train_length": -3}, "train_length -3 in the 'ssmax' entry"),
    ({"attention": "theirs", "source": ["their_module"]}, "install what brings module their_module"),
    ({"attention": "theirs", "source": ["theirs.py"]}, "add --import theirs.py"),
]


@pytest.mark.parametrize(("entry", "says"), JUNK)
def test_junk_in_a_checkpoints_entry_is_one_line(entry, says, checkpoint, tokenizer, tmp_path):
    """Through load_model and through AutoModelForCausalLM alike."""
    from transformers import AutoModelForCausalLM

    model, _ = load_model(str(checkpoint))
    attach(model, "ssmax")
    folder = save_model(model, tokenizer, tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "ssmax": entry}))
    for opened in (load_model, lambda path: AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)):
        with pytest.raises(UserError, match=says) as error:
            opened(str(folder))
        assert "\n" not in str(error.value)


def test_a_swap_keeps_what_the_models_own_position_learned(own):
    own.write_text(
        FILE.replace("def forward(self, distance):\n        return -distance.sqrt()", "def __init__(self, heads):\n"
        "        super().__init__(heads)\n        self.r = torch.nn.Parameter(torch.full((heads,), 0.5))\n\n"
        "    def forward(self, distance):\n        return -self.r[:, None, None] * distance.sqrt()")
    )  # fmt: skip
    import_file(own)
    model = build("Llama")
    attach(model, "ssmax", bias="root")
    for mechanism in mechanisms_of(model).values():
        mechanism.position_bias.r.data.fill_(9.0)
    with Setting.of("softmax1")(model):
        learned = [mechanism.position_bias.r.tolist() for mechanism in mechanisms_of(model).values()]
    assert learned == [[9.0] * 4] * 2
    assert [mechanism.position_bias.r.tolist() for mechanism in mechanisms_of(model).values()] == learned
