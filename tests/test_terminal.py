"""Out of the terminal's way: nothing of data is obeyed, warnings are one line, progress tells true, a typo's nearest is named."""

import errno
import io
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import write_gguf
from matplotlib.figure import Figure
from test_cli import call
from test_readme import TINY

import ssmax_eval
from ssmax_eval import disk, progress
from ssmax_eval.errors import UserError, nearest
from ssmax_eval.mechanisms.spelling import told
from ssmax_eval.printable import PrintableStream, printable
from ssmax_eval.progress import Progress
from ssmax_eval.quiet import library_of

# what a terminal obeys: clear the screen, set the title, go back, a C1 sequence, turn the direction, nothing, a step back, no width
EVIL = "a\x1b[2Jb\x1b]0;x\x07c\rd\x9b2Je\u202ef\bg\u200bh\u2028i"
WITH_NUL = EVIL + "\0"  # where an operating system takes one
GRID = ("--context-lengths", "96", "--depth-percents", "50", "--trials", "1")
SMALL = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def with_config(folder, checkpoint, **changes):
    copy = shutil.copytree(checkpoint, folder / "changed")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def file(path, content="A sentence stands here. " * 500):
    path.write_text(content)
    return path


def with_broken_tokenizer(folder, checkpoint):
    copy = shutil.copytree(checkpoint, folder / "broken")
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["type"] = WITH_NUL
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    return copy


def with_tokens(folder, checkpoint):
    """A model whose every token is an escape: what it writes, and what is asked, is full of them."""
    copy = shutil.copytree(checkpoint, folder / "tokens")
    names = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(names | {"extra_special_tokens": [WITH_NUL]}))
    return copy


def stored(folder, checkpoint, **changes):
    """Runs whose rows say what a user would not."""
    ssmax_eval.needle(str(checkpoint), context_lengths=[96], depth_percents=[50], trials=1, output_path=folder / "runs")
    rows = next((folder / "runs").rglob("rows.jsonl"))
    lines = [json.dumps(json.loads(line) | changes) for line in rows.read_text().splitlines()]
    rows.write_text("\n".join(lines) + "\n")
    return folder / "runs"


def runs_below(folder, checkpoint, name):
    shutil.copytree(stored(folder, checkpoint), folder / name)
    return folder / name


def import_that(folder, code):
    return file(folder / "own.py", f"import logging, warnings\nEVIL = {WITH_NUL!r}\n{code}\n")


def probe(model, *rest):
    return ["needle", "--model", model, *GRID, "--no-report", *rest]


# each way in: what the command is, and its exit code
WAYS = {
    "label": (2, lambda t, c: probe(f"{EVIL}={c}")),
    "model's folder": (0, lambda t, c: probe(shutil.copytree(c, t / EVIL))),
    "model that is not there": (2, lambda t, c: probe(t / EVIL)),
    "model's name": (2, lambda t, c: probe(EVIL)),
    "model in the json": (0, lambda t, c: [*probe(shutil.copytree(c, t / EVIL)), "--json"]),
    "model in a dry run": (0, lambda t, c: [*probe(shutil.copytree(c, t / EVIL)), "--dry-run"]),
    "model in a dry run's json": (0, lambda t, c: [*probe(shutil.copytree(c, t / EVIL)), "--dry-run", "--json"]),
    "model that warns": (0, lambda t, c: ["loss", "--model", shutil.copytree(c, t / EVIL), "--context-length", "96",
                                          "--documents", "1", "--no-report"]),
    "file to import": (2, lambda t, c: ["mechanisms", "--import", file(t / f"{EVIL}.py", "x = 1")]),
    "file to import that is not there": (2, lambda t, c: ["mechanisms", "--import", t / EVIL]),
    "file to import that raises": (2, lambda t, c: ["mechanisms", "--import", import_that(t, "raise OSError(EVIL)")]),
    "file to import that prints": (2, lambda t, c: ["mechanisms", "--import", import_that(t, "print(EVIL)")]),
    "library's log": (0, lambda t, c: probe(c, "--import", import_that(t, "logging.getLogger(EVIL).warning(EVIL)" + OWN))),
    "library's log, all of it": (0, lambda t, c: [*probe(c, "--import", import_that(t, LOGS + OWN)), "--verbose"]),
    "registered mechanism": (0, lambda t, c: ["mechanisms", "--import", import_that(t, OWN)]),
    "registered mechanism in json": (0, lambda t, c: ["mechanisms", "--json", "--import", import_that(t, OWN)]),
    "haystack that is not there": (2, lambda t, c: probe(c, "--haystack", t / EVIL)),
    "haystack": (0, lambda t, c: probe(c, "--haystack", file(t / f"{EVIL}.txt"))),
    "haystack's text": (0, lambda t, c: probe(c, "--haystack", file(t / "x.txt", f"A sentence {EVIL} is. " * 500))),
    "haystack's folder": (2, lambda t, c: probe(c, "--haystack", (t / EVIL).mkdir() or t / EVIL)),
    "text": (2, lambda t, c: ["loss", "--model", c, "--text", t / EVIL]),
    "attention": (2, lambda t, c: probe(c, "--attention", EVIL)),
    "attention's option": (2, lambda t, c: probe(c, "--attention", f"ssmax:{EVIL}=1")),
    "task": (2, lambda t, c: probe(c, "--task", EVIL)),
    "control": (2, lambda t, c: probe(c, "--controls", EVIL)),
    "lengths": (2, lambda t, c: probe(c, "--context-lengths", EVIL)),
    "device": (2, lambda t, c: probe(c, "--device", EVIL)),
    "dtype": (2, lambda t, c: probe(c, "--dtype", EVIL)),
    "position": (2, lambda t, c: probe(c, "--position", EVIL)),
    "rope scaling": (2, lambda t, c: probe(c, "--rope-scaling", EVIL)),
    "option": (2, lambda t, c: ["needle", f"--{EVIL}"]),
    "command": (2, lambda t, c: [EVIL]),
    "argument": (2, lambda t, c: ["fading", "--largest", EVIL]),
    "recipe": (2, lambda t, c: ["train", "--recipe", EVIL]),
    "recipe's field": (2, lambda t, c: ["train", "--recipe", "smoke", "--set", f"{EVIL}=1"]),
    "recipe's value": (2, lambda t, c: ["train", "--recipe", "smoke", "--set", f"layers={EVIL}"]),
    "recipe's text": (2, lambda t, c: ["train", "--recipe", "smoke", "--text", t / EVIL]),
    "training's folder": (0, lambda t, c: ["train", "--recipe", "smoke", *SMALL, "--out", t / EVIL]),
    "retrofit's folder": (0, lambda t, c: ["retrofit", "--model", c, "--out", t / EVIL]),
    "retrofit's folder in use": (2, lambda t, c: ["retrofit", "--model", c, "--out", file(t / EVIL)]),
    "config's model type": (2, lambda t, c: probe(with_config(t, c, model_type=WITH_NUL))),
    "config's architecture": (0, lambda t, c: ["models", with_config(t, c, architectures=[WITH_NUL]).parent]),
    "config's architecture in json": (0, lambda t, c: ["models", with_config(t, c, architectures=[WITH_NUL]).parent,
                                                       "--json"]),
    "config's activation": (2, lambda t, c: probe(with_config(t, c, hidden_act=WITH_NUL))),
    "config's mechanism": (2, lambda t, c: probe(with_config(t, c, ssmax={"attention": WITH_NUL}))),
    "config's mechanism in the list": (0, lambda t, c: ["models", with_config(t, c, ssmax={"attention": WITH_NUL}).parent]),
    "config's source": (2, lambda t, c: probe(with_config(t, c, ssmax={"attention": "own", "source": [WITH_NUL]}))),
    "tokenizer that is broken": (2, lambda t, c: probe(with_broken_tokenizer(t, c))),
    "tokenizer's tokens": (None, lambda t, c: probe(with_tokens(t, c))),
    "gguf's architecture": (2, lambda t, c: probe(write_gguf(t / "g", architecture="x\x1b[2J"))),
    "gguf's file": (None, lambda t, c: probe(write_gguf(t / "g").rename(t / f"{EVIL}.gguf"), "--dry-run")),
    "output path": (0, lambda t, c: probe(c, "--output-path", t / EVIL)),
    "output path in json": (0, lambda t, c: probe(c, "--output-path", t / EVIL, "--json")),
    "output path that is a file": (2, lambda t, c: probe(c, "--output-path", file(t / EVIL))),
    "report's run": (2, lambda t, c: ["report", t / EVIL]),
    "report's folder of none": (2, lambda t, c: ["report", (t / EVIL).mkdir() or t / EVIL]),
    "report of runs": (0, lambda t, c: ["report", runs_below(t, c, EVIL), "--out", t / f"{EVIL}.html"]),
    "report's file": (2, lambda t, c: ["report", stored(t, c), "--out", t / EVIL]),
    "report's figures": (2, lambda t, c: ["report", stored(t, c), "--out", t / "x.html", "--figures", file(t / EVIL)]),
    "report's title": (0, lambda t, c: ["report", stored(t, c), "--out", t / "x.html", "--title", EVIL]),
    "report's baseline": (2, lambda t, c: ["report", stored(t, c), "--out", t / "x.html", "--baseline", EVIL]),
    "row's model": (2, lambda t, c: ["report", stored(t, c, model=WITH_NUL), "--out", t / "x.html", "--baseline", "x"]),
    "row's answer": (0, lambda t, c: ["report", stored(t, c, predicted=WITH_NUL), "--out", t / "x.html"]),
    "row's error": (0, lambda t, c: ["report", stored(t, c, error=WITH_NUL, correct=None), "--out", t / "x.html"]),
    "row's haystack": (0, lambda t, c: ["report", stored(t, c, haystack=WITH_NUL), "--out", t / "x.html"]),
    "pack": (2, lambda t, c: ["pack", stored(t, c), "--out", t / EVIL]),
    "pack of runs": (0, lambda t, c: ["pack", runs_below(t, c, EVIL), "--out", t / f"{EVIL}.zip"]),
    "pack that is none": (2, lambda t, c: ["report", file(t / f"{EVIL}.zip")]),
    "models' folder": (2, lambda t, c: ["models", t / EVIL]),
    "models below": (0, lambda t, c: ["models", shutil.copytree(c, t / EVIL / "m").parent]),
    "figure": (2, lambda t, c: ["fading", "--figure", t / EVIL]),
    "figure that is drawn": (0, lambda t, c: ["fading", "--figure", t / f"{EVIL}.svg", "--json"]),
}  # fmt: skip
LOGS = "logging.getLogger('lib').warning(EVIL)\nwarnings.warn(EVIL)\n"
OWN = """
from ssmax_eval import Mechanism, register
class Mine(Mechanism):
    __doc__ = EVIL
    name, reference = 'mine-' + EVIL.replace('\\r', '').replace('\\u2028', ''), EVIL
register(Mine)
"""


@pytest.fixture
def as_before():
    """Take off again what a file of the test registers."""
    from ssmax_eval.mechanisms.registry import MECHANISMS, mechanisms

    before = dict(mechanisms())
    yield
    MECHANISMS.clear()
    MECHANISMS.update(before)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_data_is_obeyed(way, capsys, checkpoint, tmp_path, monkeypatch, as_before):
    expected, command = WAYS[way]
    arguments = [str(part) for part in command(tmp_path, checkpoint)]
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    code, out, err = call(capsys, *arguments)
    assert code in ((0, 2) if expected is None else (expected,)), err
    for text in (out, err):
        assert printable(text) == text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u200b\u2028]", text)
        assert "Traceback" not in text
    if code == 2:
        assert err.startswith("ssmax-eval: error: ")
        assert len(err.splitlines()) == 1
    if "--json" in arguments and code == 0:
        json.loads(out)


def test_what_is_printed_is_told_by_its_code(capsys, tmp_path):
    """It is not lost: who looks for a file can see what its name is."""
    _, _, err = call(capsys, "models", tmp_path / "a\x1b[2J\u202e")
    assert "\\u001b[2J\\u202e" in err or "\\x1b[2J\\u202e" in err


def test_the_stream_is_what_it_wraps():
    inner = io.StringIO()
    stream = PrintableStream(inner)
    print("déjà\tvu\x1b[1m\r", 1, file=stream)
    stream.writelines(["\0", "\n"])
    assert inner.getvalue() == "déjà\tvu\\u001b[1m\\u000d 1\n\\u0000\n"
    assert stream.isatty() is False
    assert json.loads(f'"{printable(EVIL)}"') == EVIL
    out = PrintableStream(sys.__stdout__)
    assert (out.encoding, out.fileno()) == (sys.__stdout__.encoding, sys.__stdout__.fileno())


def test_the_streams_come_back(capsys):
    before = sys.stdout, sys.stderr, logging.getLogger().handlers[:], os.environ.get("TQDM_DISABLE")
    call(capsys, "recipes", "--quiet")
    call(capsys, "nedle")
    assert before == (sys.stdout, sys.stderr, logging.getLogger().handlers, os.environ.get("TQDM_DISABLE"))


def test_an_error_of_ours_is_a_traceback_that_is_harmless(capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("\x1b[2J")

    monkeypatch.setattr("ssmax_eval.models.catalogue.catalogue", broken)
    code, _, err = call(capsys, "models")
    assert code == 1
    assert "Traceback" in err
    assert "ZeroDivisionError: \\u001b[2J" in err


WARNS = """
import logging, warnings
logging.getLogger("torch.nn").warning("a torch thing")
logging.getLogger("transformers.x").warning("two\\n lines")
logging.getLogger("transformers.y").warning("three")
warnings.warn("of Python")
logging.getLogger("ssmax_eval.x").warning("ssmax-eval: note: ours")
logging.getLogger("ssmax_eval.x").warning("ssmax-eval: note: ours")
from ssmax_eval import Mechanism, register
class Loud(Mechanism):
    name = "loud"
register(Loud)
"""


@pytest.mark.filterwarnings("default")
def test_warnings_are_gathered_and_notes_said_once(capsys, tmp_path, as_before):
    told = ("mechanisms", "--import", file(tmp_path / "loud.py", WARNS))
    code, _, err = call(capsys, *told)
    assert code == 0
    assert err.splitlines() == [
        "ssmax-eval: note: ours",
        "ssmax-eval: note: 4 warnings of libraries (torch 1, transformers 2, python 1): "
        'first: "a torch thing"; --verbose shows all',
    ]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("where", [0, 1, 3])
@pytest.mark.parametrize("option", ["--quiet", "--verbose"])
def test_quiet_and_verbose_stand_anywhere(option, where, capsys, tmp_path, as_before):
    told = ["mechanisms", "--import", file(tmp_path / "loud.py", WARNS)]
    code, out, err = call(capsys, *told[:where], option, *told[where:])
    assert code == 0
    assert "loud" in out
    every = [
        "ssmax-eval: torch: a torch thing", "ssmax-eval: transformers: two lines", "ssmax-eval: transformers: three",
        "ssmax-eval: python: UserWarning: of Python", "ssmax-eval: note: ours",
    ]  # fmt: skip
    assert err.splitlines() == ([] if option == "--quiet" else every)


def test_quiet_is_results_alone(capsys, checkpoint, tmp_path):
    told = ("needle", "--model", checkpoint, *GRID, "--output-path", tmp_path, "--no-report")
    code, out, err = call(capsys, *told, "--quiet")
    assert (code, err) == (0, "")
    assert "50%" in out
    code, _, err = call(capsys, *told, "--quiet", "--trails", "3")
    assert (code, len(err.splitlines())) == (2, 1)


def test_a_warning_is_of_the_library_that_its_file_is_of():
    assert library_of("/x/lib/site-packages/torch/nn/functional.py") == "torch"
    assert library_of("/x/lib/site-packages/six.py") == "six"
    assert library_of("/x/lib/python3.11/asyncio/base.py") == library_of("<string>") == "python"


class Clock:
    """A time that stands still until it is told to go."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")
    return Clock(monkeypatch)


def test_a_log_line_at_each_model_and_quarter_and_now_and_then(clock, capsys):
    seen = Progress(1000.0)
    for step in range(100):
        clock.now += 1
        seen.advance(10.0, "pair-softmax" if step < 60 else "pair-ssmax, ssmax", "4,096 tokens")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "ssmax-eval: 1% of the work; pair-softmax, 4,096 tokens; 1.6 min left",
        "ssmax-eval: 25% of the work; pair-softmax, 4,096 tokens; 75 s left",
        "ssmax-eval: 50% of the work; pair-softmax, 4,096 tokens; 50 s left",
        "ssmax-eval: 61% of the work; pair-ssmax, ssmax, 4,096 tokens; 39 s left",
        "ssmax-eval: 75% of the work; pair-ssmax, ssmax, 4,096 tokens; 25 s left",
        "ssmax-eval: 100% of the work; pair-ssmax, ssmax, 4,096 tokens",
    ]
    slow = Progress(1000.0)
    for _ in range(100):
        clock.now += 20
        slow.advance(1.0, "x")
    assert len(capsys.readouterr().err.splitlines()) == 1 + 99 // 2  # every 40 s: at most every 30


def test_work_of_other_processes_counts(clock, capsys):
    elsewhere = [0.0]
    seen = Progress(100.0, lambda: elsewhere[0])
    clock.now, elsewhere[0] = 10.0, 40.0
    seen.advance(10.0, "m")
    assert capsys.readouterr().err == "ssmax-eval: 50% of the work; m; 10 s left\n"


def test_a_terminal_has_one_bar_that_notes_stand_beside(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    inner = Terminal()
    monkeypatch.setattr(sys, "stderr", PrintableStream(inner))
    seen = Progress(10.0)
    clock.now = 5.0
    seen.advance(5.0, f"m{EVIL}", "512 tokens")
    with progress.aside():
        print("a note", file=sys.stderr)
    seen.close()
    text = inner.getvalue()
    assert " 50%|" in text
    assert f"m{printable(EVIL)}, 512 tokens; 5 s left"[:20] in text
    assert "\x1b" not in text.replace("\x1b[A", "")
    assert re.search(r"\r *\ra note\n", text)  # on a line of its own


def test_no_progress_where_the_environment_says_so(clock, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    seen = Progress(1.0)
    seen.advance(1.0, "m")
    monkeypatch.setenv("TQDM_DISABLE", progress.LIBRARY_BARS)  # of libraries alone
    assert Progress(1.0).shown
    assert capsys.readouterr().err == ""


def test_progress_counts_all_operations_that_are_left(capsys, checkpoint, tmp_path, monkeypatch):
    """Over models, settings and lengths; a run that goes on counts what is left."""
    seen = []

    class Spy(Progress):
        def advance(self, work, what="", figures=""):
            super().advance(work, what, figures)
            seen.append((self.part(), what, figures))

    monkeypatch.setattr("ssmax_eval.cost.Progress", Spy)
    told = ("run", "--model", checkpoint, "--model", f"B={checkpoint}", "--attention", "softmax", "--attention", "ssmax",
            "--context-lengths", "96,128", "--trials", "1", "--documents", "2", "--window", "16", "--no-report",
            "--output-path", tmp_path)  # fmt: skip
    assert call(capsys, *told)[0] == 0
    parts = [part for part, _, _ in seen]
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1, rel=1e-6)
    names = [*dict.fromkeys(name for _, name, _ in seen)]
    assert names == ["tiny-llama", "tiny-llama, ssmax", "B", "B, ssmax"]
    assert {figures for _, _, figures in seen} == {"96 tokens", "128 tokens"}
    per_prompt = [b - a for a, b in itertools.pairwise(parts)]
    grid = per_prompt[:9]  # of one run, after its first prompt
    assert max(grid) > 1.05 * 128 / 96 * min(grid)  # cost grows faster than length
    run = next((tmp_path / "attention").glob("*"))
    (run / "run.json").unlink()
    (run / "rows.jsonl").write_bytes(b"".join((run / "rows.jsonl").read_bytes().splitlines(keepends=True)[:6]))
    seen.clear()
    assert call(capsys, *told)[0] == 0
    assert len(seen) == 4
    assert seen[-1][0] == pytest.approx(1, rel=1e-6)


def test_training_tells_how_far_it_is(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE")
    code, _, err = call(capsys, "train", "--recipe", "smoke", *SMALL, "--out", tmp_path / "m")
    assert code == 0
    lines = re.findall(
        r"ssmax-eval: (\d+)% of the work; smoke-softmax-s0, step (\d) of 8(?:, loss [\d.]+, recall [\d.]+)?, "
        r"[\d,]+ tokens/s(?:; .* left)?\n", err
    )  # fmt: skip
    assert [int(percent) for percent, _ in lines] == [12, 25, 50, 75, 100]
    assert "loss" in err
    # two models are one whole, and what is trained already is no part of it
    both = ("--attention", "softmax", "--attention", "ssmax", "--attention", "log-n", "--out", tmp_path)
    (tmp_path / "m").rename(tmp_path / "smoke-softmax-s0")
    code, _, err = call(capsys, "train", "--recipe", "smoke", *SMALL, *both)
    assert code == 0
    found = re.findall(r"ssmax-eval: (\d+)% of the work; smoke-([\w-]+)-s0, step (\d) of 8", err)
    assert found == [
        ("6", "ssmax", "1"), ("25", "ssmax", "4"), ("50", "ssmax", "8"), ("56", "log-n", "1"), ("75", "log-n", "4"),
        ("100", "log-n", "8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("needle", "--trails", "3"), "no such option --trails; did you mean --trials? see ssmax-eval needle --help"),
        (("needle", "--quite"), "no such option --quite; did you mean --quiet? see ssmax-eval needle --help"),
        (("needle", "--nothing-like-it"), "no such option --nothing-like-it; see ssmax-eval needle --help"),
        (("nedle",), "no such command nedle; did you mean needle? see ssmax-eval --help"),
        (("poem",), "no such command poem; see ssmax-eval --help"),
        (("fading", "--attention", "ssmx"), "did you mean ssmax?"),
        (("fading", "--attention", "llama4:betta=1"), "did you mean beta?"),
        (("train", "--recipe", "smal"), "did you mean small?"),
        (("train", "--recipe", "smoke", "--set", "stpes=3"), "did you mean steps?"),
        (("needle", "--model", "ssmax-bible"), "did you mean ssmax-bible-2m?"),
        (("needle", "--task", "singel"), "did you mean single?"),
        (("needle", "--value", "numbr"), "did you mean number?"),
        (("needle", "--haystack", "nosie"), "did you mean noise?"),
        (("needle", "--controls", "needle-onyl"), "did you mean needle-only?"),
        (("needle", "--scoring", "forcd"), "did you mean forced?"),
        (("needle", "--position", "alibbi"), "did you mean alibi?"),
        (("loss", "--text", "bibel"), "did you mean bible?"),
    ],
)
def test_the_nearest_is_named(capsys, arguments, says):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_python_names_the_nearest_too(tmp_path):
    assert nearest("x", ["single", "multikey"]) == ""
    with pytest.raises(UserError, match="did you mean steps"):
        ssmax_eval.train("smoke", out=tmp_path / "m", stepps=3)
    with pytest.raises(UserError, match="did you mean ssmax"):
        ssmax_eval.Setting.of("ssmaxx")


def test_json_is_typed(capsys, checkpoint):
    models = json.loads(call(capsys, "models", checkpoint.parent, "--json")[1])["models"]
    known = {each["model"]: each for each in models}
    bundled, tiny = known["ssmax-bible-2m"], known[str(checkpoint)]
    assert isinstance(bundled["parameters"], int)
    assert bundled["needles_found"] == bundled["needles_by_length"][0]["share"] == 1.0
    assert isinstance(bundled["trained_seconds"], float)
    assert tiny | {"train_length": 512, "needles_found": None, "trained_seconds": None, "licence": None} == tiny
    assert tiny["path"] == str(checkpoint)
    mechanisms = json.loads(call(capsys, "mechanisms", "--json")[1])["mechanisms"]
    assert mechanisms == told()
    ssmax = next(each for each in mechanisms if each["mechanism"] == "ssmax")
    assert (ssmax["options"], ssmax["learned"], ssmax["swap"]) == ({"s": None}, ["s"], True)
    recipes = json.loads(call(capsys, "recipes", "--json")[1])["recipes"]
    assert (recipes[0]["name"], recipes[0]["layers"], recipes[0]["digits"]) == ("smoke", 2, [7, 7])
    plan = json.loads(call(capsys, "needle", "--model", checkpoint, *GRID, "--dry-run", "--json")[1])
    assert isinstance(plan["operations"], float)
    assert "in_words" not in plan


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_files(figure, file, _savefig=Figure.savefig, **options):
    """Draw into memory; into a file there is no space."""
    return full() if isinstance(file, Path) else _savefig(figure, file, **options)


@pytest.mark.parametrize("command", ["retrofit", "fading", "report", "figures", "pack", "train"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half(command, capsys, checkpoint, tmp_path, monkeypatch):
    runs = stored(tmp_path, checkpoint) if command in ("report", "figures", "pack") else None
    out = tmp_path / "out"
    told = {
        "retrofit": ("retrofit", "--model", checkpoint, "--out", out / "m"),
        "fading": ("fading", "--figure", out / "f.svg"),
        "report": ("report", runs, "--out", out / "r.html"),
        "figures": ("report", runs, "--out", tmp_path / "r.html", "--figures", out),
        "pack": ("pack", runs, "--out", out / "p.zip"),
        "train": ("train", "--recipe", "smoke", *SMALL, "--out", out / "m"),
    }[command]
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        patch.setattr("matplotlib.figure.Figure.savefig", in_files)
        patch.setattr("zipfile.ZipFile.writestr", full)
        patch.setattr("safetensors.torch.save_file", full)
        code, stdout, err = call(capsys, *told, "--quiet")
    assert (code, stdout) == (2, "")
    assert len(err.splitlines()) == 1
    assert "No space left on device" in err
    assert [path for path in out.rglob("*") if path.is_file()] == []
    assert call(capsys, *told)[0] == 0  # nothing is in its way


def test_libraries_say_a_full_disk_in_their_own_words():
    storage_full = (
        'Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "No space left on device" }'
    )
    for words in (storage_full, "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"):
        assert disk.is_full(RuntimeError(words))
    wrapped = ValueError("cannot be written")
    wrapped.__cause__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert disk.is_full(wrapped)
    assert not disk.is_full(ValueError("space"))


def test_training_that_meets_a_full_disk_loses_nothing(capsys, tmp_path):
    """On a disk of its own, where root can mount one: the same command, with space, goes on from the last whole checkpoint."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    told = ("train", "--recipe", "smoke", *SMALL, "--out", folder / "m")
    try:
        code, out, err = call(capsys, *told)
        assert (code, out, err) == (
            2,
            "",
            "ssmax-eval: error: output: No space left on device; what was stored is kept\n",
        )
        assert [each.name for each in (folder / "m" / "checkpoints").iterdir()] == ["checkpoint-1"]
        subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
        assert call(capsys, *told)[0] == 0
        assert (folder / "m" / "model.safetensors").is_file()
        log = [json.loads(line)["step"] for line in (folder / "m" / "training_log.jsonl").read_text().splitlines()]
        assert log == [1, 2, 3, 4, 5, 6, 7, 8]
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_a_stream_that_is_closed_loses_nothing(closed):
    command = f"{shlex.quote(sys.executable)} -m ssmax_eval fading --largest 10 {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("weight" in done.stdout) == (closed == "2>&-")
