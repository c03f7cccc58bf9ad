"""The page: the right numbers, honest gaps, inert text, nothing fetched."""

import json
import re

import pandas as pd
import pytest
from made import made
from tiny import build

import ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.errors import UserError
from ssmax_eval.probes.attention.rows import AttentionRow
from ssmax_eval.probes.needle.sections.prompts import where
from ssmax_eval.report import figures

HOSTILE = '<img src=x onerror=alert(1)> $x_1$ & "q"</script>'


def row(model="m", length=512, depth=0.0, trial=0, correct=True, **changes):
    run_id = changes.pop("run_id", "r1")
    known = {
        "sample": f"grid/{length}/{depth}/{trial}",
        "fingerprint": "f" * 16,
        "dtype": "float32",
        "attention_swapped": False,
        "value": "number",
        "needles": 1,
        "scoring": "forced",
        "model": model,
        "attention": "softmax",
        "rope": "as trained",
        "rope_theta": 10000.0,
        "rope_theta_factor": 1.0,
        "rope_scaling": None,
        "task": "single",
        "haystack": "text",
        "control": None,
        "context_length": length,
        "depth_percent": depth,
        "realised_depth_percent": depth,
        "trial": trial,
        "seed": 0,
        "needle": "N",
        "question": "Q",
        "expected": "8106422",
        "predicted": "8106422" if correct else "8106429",
        "correct": correct,
        "first_correct": None if correct is None else True,
        "answer_nll": None if correct is None else 0.5,
        "answer_ranks": None if correct is None else [0, 0],
        "margin": 1.0,
        "error": "out of memory" if correct is None else None,
        "needle_start": 3,
        "needle_end": 9,
        "prompt_sha256": f"{length}-{depth}-{trial}",
        **changes,
    }
    return {"run_id": run_id, **made(AttentionRow, **known)}


def frame(rows):
    data = pd.DataFrame(rows)
    data["correct"] = data["correct"].astype("boolean")
    data["first_correct"] = data["first_correct"].astype("boolean")
    return data


def page_of(rows, tmp_path):
    return ssmax_eval.report(frame(rows), tmp_path / "page.html").read_text()


def data_of(page):
    """Read the prompts back that a page holds."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def grid_of(page, series):
    """Read a series' HTML grid back: {(length, depth): text of the cell}."""
    pattern = re.compile(
        rf'aria-label="(failed|[\d.]+) [^:"]*: {re.escape(series)}, length (\d+), depth ([\d.]+)%, (\d+) prompts"'
    )
    return {(int(n), float(d)): (value, int(scored)) for value, n, d, scored in pattern.findall(page)}


def test_cells_hold_the_means_of_their_trials(tmp_path):
    rows = [
        row(depth=d, trial=t, correct=t < right) for d, right in ((0.0, 4), (50.0, 1), (100.0, 0)) for t in range(4)
    ]
    page = page_of(rows, tmp_path)
    assert grid_of(page, "m") == {(512, 0.0): ("1.00", 4), (512, 50.0): ("0.25", 4), (512, 100.0): ("0.00", 4)}
    assert page.index(">0%</th>") < page.index(">50%</th>") < page.index(">100%</th>")
    assert re.search(r">0.42<small>0\.\d\d–0\.\d\d</small></span></td>", page)  # the mean and its interval


def test_trap_15_failed_and_untested_cells_are_not_zero(tmp_path):
    rows = [row(depth=0.0), row(depth=0.0, length=1024, correct=None), row(depth=50.0, correct=False)]
    page = page_of(rows, tmp_path)
    assert grid_of(page, "m") == {(512, 0.0): ("1.00", 1), (1024, 0.0): ("failed", 0), (512, 50.0): ("0.00", 1)}
    assert page.count('class="cell untested"') == 1
    assert page.count('class="failed"') == 1
    assert "1 could not be scored" in page
    cells = statistics.cells(statistics.with_series(frame(rows)))
    assert cells.set_index(["context_length", "depth_percent"]).accuracy.isna().tolist() == [False, True, False]


def test_difference_grid(tmp_path):
    rows = [row("a", correct=False), row("b"), row("a", 1024), row("b", 1024, correct=False), row("b", 2048)]
    page = page_of(rows, tmp_path)
    assert "b minus a" in page
    assert "+1.00" in page
    assert "-1.00" in page


def test_trap_18_the_report_reads_scores(tmp_path):
    """A row is what it says, whatever its text would suggest to a judge."""
    rows = [row(trial=trial, correct=False, expected="1", predicted="1") for trial in (0, 1)]
    rows.append(row(trial=2, correct=True, expected="1", predicted="2"))
    assert grid_of(page_of(rows, tmp_path), "m") == {(512, 0.0): ("0.33", 3)}


def test_hostile_names_and_model_output_stay_text(tmp_path):
    page = page_of([row(HOSTILE, predicted=HOSTILE, correct=False), row("other")], tmp_path)
    assert "<img" not in page
    assert page.count("</script>") == 2
    answers = data_of(page)["tasks"][0]["series"]
    assert [each["name"] for each in answers] == [HOSTILE, "other"]
    assert answers[0]["answers"][0][2] == HOSTILE


def test_page_asks_nothing_of_the_network(tmp_path):
    page = page_of([row(), row("other")], tmp_path)
    outside = set(re.findall(r"(?:https?:)?//[\w.-]+", page)) - {"http://www.w3.org"}
    assert not {url for url in outside if "." in url}, outside
    assert not re.search(r"<(link|script|img|iframe)[^>]+(src|href)=", page)


def test_same_rows_same_page(tmp_path):
    rows = [row("a"), row("b", correct=False)]
    assert page_of(rows, tmp_path) == page_of(rows, tmp_path)


def test_series_are_named_by_what_differs():
    data = frame(
        [row("a"), row("a", attention="ssmax"), row("a", attention="ssmax", rope="theta x50", attention_swapped=True)]
    )
    assert statistics.with_series(data).series.tolist() == [
        "a (softmax)",
        "a (ssmax)",
        "a (ssmax swapped in, theta x50)",
    ]
    assert statistics.with_series(frame([row("a")])).series.tolist() == ["a"]


def test_controls_are_beside_the_grid_not_in_it(tmp_path):
    rows = [
        row(),
        row(control="no-needle", depth=None, correct=False),
        row(control="needle-only", depth=None, length=41),
    ]
    page = page_of(rows, tmp_path)
    assert grid_of(page, "m") == {(512, 0.0): ("1.00", 1)}
    assert "<td>no-needle</td><td>512</td><td>0.00</td>" in page
    assert "<td>needle-only</td><td>as short as it is</td><td>1.00</td>" in page


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="no rows of a probe"):
        ssmax_eval.report(pd.DataFrame(), tmp_path / "x.html")


def test_ink_is_readable_on_every_colour():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for difference in (False, True):
        for i in range(101):
            background = figures.colour(2 * i / 100 - 1 if difference else i / 100, difference)
            ink = {"#010101": 0.0, "#fff": 1.0}[figures.ink(background)]
            light, dark = max(luminance(background), ink), min(luminance(background), ink)
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_figures_take_axes_and_return_them(tmp_path):
    from matplotlib.figure import Figure

    cells = statistics.cells(statistics.with_series(frame([row(), row(length=1024, correct=None), row(depth=50.0)])))
    ax = Figure().subplots()
    assert figures.grid(ax, cells, "t", train_length=512) is ax
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0%", "50%"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["512", "1,024"]


def test_report_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, ssmax_eval; ssmax_eval.report, ssmax_eval.load_results; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_not_the_same_is_never_averaged():
    rows = [
        row(),
        row(correct=False, scoring="generate"),
        row(dtype="bfloat16"),
        row(correct=False, fingerprint="e" * 16),
    ]
    cells = statistics.cells(statistics.with_series(frame(rows)))
    assert len(cells) == 4
    assert set(cells.trials) == {1}
    pooled = statistics.with_series(frame([row(), row(run_id="r2"), row(trial=1, run_id="r2")]))
    assert len(pooled) == 2  # two runs hold the same prompt: it counts once
    tasks = statistics.cells(statistics.with_series(frame([row(), row(value="word")])))
    assert len(tasks) == 2


def test_curves_of_several_logs_put_below_each_other():
    """Every log counts its lines from 0; a model without s has no s curve."""
    from ssmax_eval.report.figures import curves

    log = pd.DataFrame({"tokens": [1, 2], "text_loss": [6.0, 5.0], "recall": [0.1, 0.9]})
    mechanism = log.assign(model="b", s_mean=0.3, s_min=0.2, s_max=0.4)
    axes = curves(pd.concat([log.assign(model="a"), mechanism])).axes
    assert len(axes) == 3
    assert [len(ax.lines) for ax in axes[:2]] == [2 + 2, 2]  # the first also holds the legend's handles


def test_a_page_of_layers_with_unlike_numbers_of_maps(tokenizer, tmp_path):
    """Differential attention beside windowed layers: pairs in some layers, heads in others; rows that do not sum to 1."""
    model = build("Gemma3Text", vocab_size=1024, max_position_embeddings=512)
    options = {"context_lengths": [128], "depth_percents": [50], "trials": 2, "output_path": tmp_path}
    ssmax_eval.attention((model, tokenizer), attention=["softmax", "differential", "softmax1"], **options)
    page = ssmax_eval.report(tmp_path, tmp_path / "page.html").read_text()
    assert "NaN" not in page.partition("<script")[0]


def test_what_attention_does_elsewhere_is_of_the_rows_sum():
    told = {
        "top_mass_answer": [0.25], "mass_answer": [[0.25], [None]], "mass_needle": [[0.3], [0.1]], "mass_first": [[0.05], [0.1]],
        "mass_question": [[0.1], [0.1]], "maximum_at": [[7], [3]], "needle_start": 5,
    }  # fmt: skip
    assert where(told) == [[25], 0, 0, 25, 5, 5, 10, 7]
    assert where({**told, "row_sum": [[0.7], [1.0]]}) == [[25], 0, 0, 25, 5, 5, 10, 7, 70]


def test_credit_is_shown_where_answers_are_right_in_part(tmp_path):
    told = {"task": "multivalue", "needles": 2}
    rows = [row(trial=i, correct=i == 0, credit=(1.0, 0.5, 0.5, 0.0)[i], **told) for i in range(4)]
    means = statistics.lengths(statistics.with_series(frame(rows)))
    assert (means["accuracy"].iloc[0], means["credit"].iloc[0]) == (0.25, 0.5)
    assert re.search(r'>credit</th><td class="mean"><span class="cell">0\.50<', page_of(rows, tmp_path))
    alike = [{**each, "credit": float(each["correct"])} for each in rows]
    assert ">credit<" not in page_of(alike, tmp_path)
    assert ">credit<" not in page_of([row()], tmp_path)  # rows of before tell none


def test_every_table_is_a_file_too(tmp_path):
    """CSV that reads back to the same text, and LaTeX in which nothing of a name is code."""
    from ssmax_eval.report.files import escaped, save_tables
    from ssmax_eval.report.section import Found, Section, Table

    class Shown(Section):
        def tables(self, found):
            yield "a line"
            yield Table("50% of a_b", ["series", "n"], [["x & y, {z}", "1"], ["$p$", ""]])

    first, second = save_tables([Found(Shown(), [1])], tmp_path / "tables")
    assert (first.name, second.name) == ("01-50-of-a-b.csv", "01-50-of-a-b.tex")
    assert pd.read_csv(first, dtype=str, keep_default_na=False).to_numpy().tolist() == [
        ["x & y, {z}", "1"],
        ["$p$", ""],
    ]
    text = second.read_text()
    assert r"x \& y, \{z\}" in text
    assert r"50\% of a\_b" in text
    assert escaped(r"\x") == r"\textbackslash x"


def test_trainings_of_one_label_are_two_curves():
    from ssmax_eval.report.context import Context
    from ssmax_eval.report.training import logs_of, signs_of

    def record(label, fingerprint, loss):
        log = [{"tokens": 1, "text_loss": loss}]
        return {"model": {"label": label, "fingerprint": fingerprint, "training": {"log": log, "signs": [f"{loss}"]}}}

    records = [record("a", "f1", 1.0), record("a", "f2", 2.0), record("a", "f1", 1.0), record("b", "f3", 3.0)]
    rows, context = pd.DataFrame({"model": ["a", "b"]}), Context(records)
    assert [log["model"].iloc[0] for log in logs_of(rows, context)] == ["a (f1)", "a (f2)", "b"]
    assert signs_of(rows, context) == {"a (f1)": ["1.0"], "a (f2)": ["2.0"], "b": ["3.0"]}
    assert signs_of(rows.iloc[1:], context) == {"b": ["3.0"]}
