"""A probe of one's own: the folder of CONTRIBUTING.md, in a copy of the package, with no other file touched."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = re.findall(r"```py\n# (ssmax_eval/probes/\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Return a folder with a copy of the package that holds the probe as well."""
    folder = tmp_path_factory.mktemp("scratch")
    shutil.copytree(ROOT / "ssmax_eval", folder / "ssmax_eval", ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    (folder / "ssmax_eval/probes/copying/sections/__init__.py").touch()
    return folder


def python(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return done.stdout


def test_one_folder_is_a_command_a_function_rows_and_a_part_of_the_page(scratch, checkpoint):
    assert len(FILES) == 3
    options = ["--model", checkpoint, "--context-lengths", "64,128", "--attention", "softmax", "--attention", "ssmax"]
    out = python(scratch, "-m", "ssmax_eval", "copying", *options)
    assert "nats a token of what is said again" in out
    page = (scratch / out.splitlines()[-1]).read_text()
    assert "<h1>Copying</h1>" in page
    assert "nats a token of what is said again" in page
    found = json.loads(python(scratch, "-m", "ssmax_eval", "copying", *options, "--json", "--no-report"))
    assert [line["64"] > 0 for line in found["copying"]] == [True, True]
    assert "Tokens of both halves." in python(scratch, "-m", "ssmax_eval", "copying", "--help")
    code = f"""
import ssmax_eval
rows = ssmax_eval.load_results("results")
print(sorted(set(rows["probe"])), rows["copy_nll"].gt(0).all(), "copying" in dir(ssmax_eval))
again = ssmax_eval.copying({str(checkpoint)!r}, context_lengths=(64, 128))
print(len(again))
"""
    assert python(scratch, "-c", code).split("\n")[:2] == ["['copying'] True True", "2"]


def test_all_probes_at_once_have_it_and_each_other_table_keeps_or_refuses_its_rows(scratch, checkpoint):
    small = [
        "--context-lengths",
        "256",
        "--depth-percents",
        "50",
        "--trials",
        "1",
        "--documents",
        "1",
        "--window",
        "16",
    ]
    out = python(scratch, "-m", "ssmax_eval", "run", "--model", checkpoint, *small, "--output-path", "all")
    page = (scratch / out.splitlines()[-1]).read_text()
    assert "<h1>Needle in a haystack, attention on the needle, needed scale, loss, copying</h1>" in page
    code = """
import pandas as pd, ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.errors import UserError
rows = statistics.with_series(ssmax_eval.load_results("all"))
print(rows.groupby("probe").size().to_dict())
for name in ("cells", "lengths", "controls", "heads", "with_causes", "effective_lengths", "theta_lengths", "best_theta",
             "loss_by_position", "context_gain"):
    try:
        getattr(statistics, name)(rows)
    except UserError as error:
        assert name in str(error) and "copying" in str(error), error
    else:
        raise AssertionError(name)
for ask in (lambda: statistics.compare(rows, "x"), lambda: statistics.compare_reach(rows, "x"),
            lambda: statistics.over_seeds(rows, {}), lambda: statistics.compare_seeds(rows, {}, "x")):
    try:
        ask()
    except UserError as error:
        assert "copying" in str(error), error
    else:
        raise AssertionError(ask)
own = statistics.with_series(rows[rows["probe"] == "copying"])
print(len(own), own["copy_nll"].notna().all())
"""
    printed = python(scratch, "-c", code).splitlines()
    assert "'copying': 1" in printed[0]
    assert "'attention': 1" in printed[0]
    assert printed[1] == "1 True"


PART = '''"""The page's part on how long the answers are."""

from ....report.section import Section, Table


class Lengths(Section):
    """Tokens of the answers, by series."""

    place = 45
    heading = "lengths of answers"
    details = ("answer_ranks",)

    def numbers(self, rows, context):
        known = rows[rows["answer_ranks"].map(lambda each: isinstance(each, list))]
        counts = known["answer_ranks"].map(len).groupby(known["series"]).max()
        return [counts] if len(counts) else []

    def tables(self, found):
        for counts in found:
            yield Table("tokens of the longest answer", ["series", "tokens"], [[n, str(v)] for n, v in counts.items()])

    def summary(self, found):
        return {"answer_tokens": [counts.to_dict() for counts in found]}


SECTION = Lengths()
'''


def test_one_file_is_a_part_of_page_terminal_and_json(scratch, checkpoint):
    (scratch / "ssmax_eval/probes/needle/sections/answer_lengths.py").write_text(PART)
    small = ["--context-lengths", "256", "--depth-percents", "50", "--trials", "1", "--output-path", "part"]
    out = python(scratch, "-m", "ssmax_eval", "needle", "--model", checkpoint, *small)
    assert "tokens of the longest answer" in out
    page = (scratch / out.splitlines()[-1]).read_text()
    assert "<h1>Needle in a haystack, lengths of answers</h1>" in page
    assert page.index("<h2>lengths of answers</h2>") < page.index("<h2>prompts and answers</h2>")
    found = json.loads(python(scratch, "-m", "ssmax_eval", "needle", "--model", checkpoint, *small, "--json"))
    assert [*found["answer_tokens"][0].values()] == [7]
