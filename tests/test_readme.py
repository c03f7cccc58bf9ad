"""What the README and the pages of docs/ say can be run, is there, and is reached by links."""

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from own import FILE, forget
from tiny import build, tokens
from typer.main import get_command

import ssmax_eval
from ssmax_eval.cli import app, main
from ssmax_eval.mechanisms.registry import MECHANISMS, mechanisms
from ssmax_eval.position.bias import biases
from ssmax_eval.probes.attention.rows import AttentionRow
from ssmax_eval.probes.loss.rows import LossRow
from ssmax_eval.probes.needed_scale.rows import NeededScaleRow
from ssmax_eval.probes.needle.rows import NeedleRow
from ssmax_eval.probes.ruler.rows import RulerRow
from ssmax_eval.rows import Row, table
from ssmax_eval.training.job import SHAPE
from ssmax_eval.training.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
# pages that are linked to, and whose code other tests run
OTHERS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "CHANGELOG.md", ROOT / "reports/LOG.md", ROOT / "results/README.md", ROOT / "tasks/README.md"]
}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.S)


def lines(page):
    """Return the page's commands of ours; those that need lm-eval are run in test_lm_eval_model.py."""
    every = "\n".join(blocks(page, "sh")).splitlines()
    return [line for line in every if line.startswith("ssmax-eval") and "lm-eval" not in line]


def builds(line):
    """Is the line one of a series in which each needs what the last one made?"""
    return "models/" in line or "--out models" in line


# a line that stands on several pages is run once
ALONE = dict.fromkeys(line for page in PAGES for line in lines(page) if not builds(line))
# a recipe of seconds: the shape of the command, not its size
TINY = {
    "layers": 1, "hidden": 16, "heads": 2, "feed_forward": 16, "vocabulary": 400, "steps": 8, "tokens_per_step": 512,
    "train_length": 128, "short_length": 64, "text_characters": 20000, "warmup_steps": 1, "text": "generated",
}  # fmt: skip
LENGTH = {"train_length": 32, "short_length": 32}  # of studies, which read at many times that
FIELDS = ", ".join(f"{key}={value!r}" for key, value in TINY.items())
# code of a page, and what makes it small
SMALLER = {
    "[512, 1024], trials=10": "[96, 128], trials=1",
    "context_lengths=[512, 1024]": "context_lengths=[96, 128], trials=1",
    "context_length=4096, documents=8": "context_length=384, documents=2",
    "seed=3, steps=300": f"seed=3, {FIELDS}",
    'out="models/narrow-ssmax", seed=0': f'out="models/narrow-ssmax", seed=0, {FIELDS}',
}


@pytest.fixture(scope="session")
def stored(checkpoint, tmp_path_factory):
    """Return a results folder with one small needle run."""
    folder = tmp_path_factory.mktemp("stored") / "results"
    small = {"context_lengths": [96], "depth_percents": [0, 100], "trials": 1}
    ssmax_eval.needle(str(checkpoint), **small, output_path=folder)
    return folder


def small_sweep(checkpoint):
    """Return the sweep of the pages, on a tiny model and a tiny grid."""
    (text,) = blocks("docs/sweeps.md", "yaml")
    changes = {
        "./my-model": str(checkpoint), "softmax-bible-2m": str(checkpoint), "[1024, 4096]": "[384]", "16384": "384",
        "trials: 4": "trials: 1\n    depth_percents: [50]", "seed: [0, 1]": "documents: 2\n    seed: [0, 1]",
    }  # fmt: skip
    for large, small in changes.items():
        assert large in text
        text = text.replace(large, small)
    return text


@pytest.fixture
def here(stored, checkpoint, tmp_path, monkeypatch):
    """Give a folder to work in, with what a reader of the pages has: a text and a stored run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    (tmp_path / "moby_dick.txt").write_text("Call me Ishmael. Some years ago I went to sea. " * 60)
    shutil.copy(Path(__file__).parent / "german.txt", tmp_path / "geschichte.txt")
    (tmp_path / "mine.jinja").write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}\nassistant: "
    )
    (tmp_path / "mine.py").write_text("def answer(context, question):\n    return context\n")
    shutil.copytree(stored, tmp_path / "results")
    (tmp_path / "sweep.yaml").write_text(small_sweep(checkpoint))
    before = dict(mechanisms()), dict(biases())
    yield tmp_path
    forget(before)  # what a page imported


def prepared(line, checkpoint):
    for reference in ("./my-model", "meta-llama/Llama-3.2-1B", "smollm2-135m"):
        line = line.replace(reference, str(checkpoint))
    words = shlex.split(line.replace("study/", f"{ROOT}/results/models/study/"))[1:]
    if words[0] == "train":
        if "--jobs" in words:  # side by side: test_training.py; a process of its own is seconds of imports
            words[words.index("--jobs") + 1] = "1"
        given = {word.partition("=")[0] for word in words} | ({"text"} if "--text" in words else set())
        given |= set(SHAPE) if "--start" in words else set()
        words += [part for key, value in TINY.items() if key not in given for part in ("--set", f"{key}={value}")]
    if words[0] == "league":
        words = [word for i, word in enumerate(words) if "--seeds" not in words[max(0, i - 1) : i + 1]]
        words += ["--seeds", "0", "--trials", "1"]
        given = [each for name, each in pairwise(words) if name == "--attention"] or ["ssmax"]
        words = [word for i, word in enumerate(words) if "--attention" not in words[max(0, i - 1) : i + 1]]
        words += ["--attention", given[0]]  # of several: test_league.py
        tiny = {
            **TINY,
            "layers": 4,
            "heads": 4,
            **LENGTH,
            "steps": 2,
        }  # read at 64 times that
        words += [part for key, value in tiny.items() for part in ("--set", f"{key}={value}")]
    if words[0] == "paper":
        words = [word for i, word in enumerate(words) if "--seeds" not in words[max(0, i - 1) : i + 1]]
        words += ["--seeds", "0", "--trials", "1"]
        words += [part for key, value in {**TINY, **LENGTH}.items() for part in ("--set", f"{key}={value}")]
    if words[0] == "ruler":
        words = [
            word
            for i, word in enumerate(words)
            if not {"--context-lengths", "--tasks", "--trials"} & {*words[max(0, i - 1) : i + 1]}
        ]
        words += ["--tasks", "niah_single_1,fwe", "--context-lengths", "768", "--trials", "1"]
    if words[0] == "loss":
        words = [word.replace("16384", "384").replace("4096", "128") for word in words] + ["--documents", "2"]
    if words[0] == "advise":
        words += ["--context-lengths", "384", "--depth-percents", "50", "--trials", "12"]
    if words[0] == "reach":
        words = [word for i, word in enumerate(words) if "--precision" not in words[max(0, i - 1) : i + 1]]
        words += ["--context-lengths", "384,768", "--depth-percents", "50", "--limit-tokens", "6000"]
    if words[0] in ("needle", "attention", "needed-scale", "run") and "sweep.yaml" not in words:
        words = [word for i, word in enumerate(words) if "--context-lengths" not in words[max(0, i - 1) : i + 1]]
        words += ["--context-lengths", "384", "--depth-percents", "50", "--trials", "1"]
    return words


# the league from nothing, with several mechanisms, is in test_league.py
SLOW = ("ssmax-eval league --attention",)


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=pytest.mark.slow if line.startswith(SLOW) else ()) for line in ALONE]
)
def test_commands_of_the_pages(line, checkpoint, here, capsys):
    """Every example runs, on a tiny model and a tiny grid."""
    main_ok(capsys, prepared(line, checkpoint))


@pytest.mark.parametrize("page", [page for page in PAGES if any(map(builds, lines(page))) or blocks(page, "python")])
def test_a_page_from_top_to_bottom(page, checkpoint, here, capsys):
    """Commands that build on each other, one after the other; then the page's Python, with what they made."""
    for line in filter(builds, lines(page)):
        main_ok(capsys, prepared(line, checkpoint))
    every, recipes = dict(mechanisms()), dict(RECIPES)
    names = {"model": build("Llama"), "ids": tokens()}
    with torch.no_grad():
        plain = names["model"](names["ids"]).logits
    try:
        for code in blocks(page, "python"):
            code = code.replace("smollm2-135m", str(checkpoint)).replace("    ...", "    logits = model(ids).logits")
            for large, small in SMALLER.items():
                code = code.replace(large, small)
            exec(code, names)
        if page == "docs/mechanisms.md":  # its own mechanism was at work
            assert "clipped" in MECHANISMS
            assert (names["logits"] - plain).abs().max() > 1e-3
        if page == "README.md":  # two mechanisms, two lengths, five depths
            assert len(names["df"]) == 20
        if page == "docs/python.md":  # the same, and what was stored before
            assert len(names["df"]) == 20  # each prompt once
            assert (here / "reports" / "mine.html").is_file()
            assert len(names["rows"])
            assert names["folder"].is_dir()
        if page == "docs/training.md":  # what its commands trained, opened by transformers
            assert isinstance(names["model"], transformers.PreTrainedModel)
            assert names["model"].config.ssmax["attention"] == "ssmax"
        if page == "CONTRIBUTING.md":
            assert "narrow" in RECIPES
            assert "sigmoid-example" in MECHANISMS
            assert (names["folder"] / "model.safetensors").is_file()
    finally:
        for table, before in ((MECHANISMS, every), (RECIPES, recipes)):
            table.clear()
            table.update(before)


def test_what_makes_code_small_is_still_there():
    code = "".join(block for page in PAGES for block in blocks(page, "python"))
    assert [large for large in SMALLER if large not in code] == []


def test_lines_for_lm_eval_are_one_set():
    """test_lm_eval_model.py runs the README's; those of docs/lm-eval.md are the same."""
    assert [block for block in blocks("README.md", "sh") if "lm-tasks-path" in block] == blocks("docs/lm-eval.md", "sh")


def anchors(text):
    """Return the names that a forge gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """Return the relative links of a page, each as the path it leads to and its anchor."""
    text = (PAGES | OTHERS)[page]
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    found = []
    for target in targets:
        path, _, anchor = target.partition("#")
        whole = (ROOT / page).parent / path if path else ROOT / page
        found.append((whole.resolve(), anchor))
    return found


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_resolve(page):
    for path, anchor in links(page):
        assert path.exists(), path
        assert path.is_relative_to(ROOT.resolve())
        assert not anchor or anchor in anchors(path.read_text()), f"{path}#{anchor}"


def test_every_page_is_reached():
    for index in ("README.md", "docs/README.md"):
        reached = {path for path, _ in links(index)}
        missing = {page for page in PAGES if page != index and (ROOT / page).resolve() not in reached}
        assert missing <= {"README.md"}, index


def test_files_that_pages_name_are_there():
    named = re.compile(r"(?<![\w/])((?:benchmarks|tests|tasks|\.ci)/[\w./-]*\w)")
    for page, text in PAGES.items():
        assert [name for name in named.findall(text) if not (ROOT / name).exists()] == [], page


def test_commands_and_recipes_are_told_of():
    table = re.findall(r"^\| `ssmax-eval ([\w-]+)", PAGES["docs/cli.md"], re.M)
    assert sorted(table) == sorted(get_command(app).commands)
    assert re.findall(r"^\| `(\w+)` \| \d+ layers", PAGES["docs/training.md"], re.M) == list(RECIPES)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].encode()) < 8192


def main_ok(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("Every row:", Row),
        ("Rows of `needle`", NeedleRow),
        ("Rows of `attention`", AttentionRow),
        ("Rows of `needed-scale`", NeededScaleRow),
        ("Rows of `loss`", LossRow),
        ("Rows of `ruler`", RulerRow),
    ],
)
def test_the_tables_of_columns_are_the_schemas(heading, schema):
    """One place says what a column is: the probe's rows.py."""
    text = OTHERS["results/README.md"].split(heading)[1].split("\n\n")[1]
    lines = [line for line in text.splitlines()[2:] if not line.startswith(("| `run_id`", "| `probe`", "| `series`"))]
    assert lines == [f"| {', '.join(f'`{name}`' for name in names)} | {told} |" for names, told in table(schema)]


def test_every_column_is_told_of_and_the_notebook_runs(checkpoint, tmp_path, monkeypatch):
    """results/README.md names the columns of all probes, no more and no fewer."""
    import matplotlib

    text = OTHERS["results/README.md"]
    told = {name for line in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(\w+)`", line)}
    monkeypatch.chdir(tmp_path)
    small = {"context_lengths": [96, 128], "depth_percents": [0, 100], "trials": 2}
    ssmax_eval.attention(str(checkpoint), **small, output_path="other")
    ssmax_eval.needed_scale(str(checkpoint), **small, output_path="other")
    ssmax_eval.loss(str(checkpoint), context_length=64, documents=2, window=16, output_path="other")
    ssmax_eval.ruler(str(checkpoint), tasks="fwe", context_lengths=[768], trials=1, output_path="other")
    ssmax_eval.needle(str(checkpoint), attention=["softmax", "ssmax"], **small)
    assert set(ssmax_eval.load_results("other", "results").columns) == told
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names := {})
    plt.close("all")
    assert len(names["cells"]) == 8
