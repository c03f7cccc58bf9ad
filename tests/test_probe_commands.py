"""attention, loss, run and fading as a user meets them: one forward shared, runs resumed, one page, clear refusals."""

import json
import re

import pandas as pd
import pytest
from test_cli import GRID, call

import ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.results import find_runs

LOSS = ("--context-length", "200", "--documents", "3", "--window", "32")
HOSTILE = "<script>alert(1)</script> $x$"


def test_attention_is_the_needles_run_with_masses(capsys, checkpoint, tmp_path):
    """The same prompts, verdicts and nll as `needle`, and each head's mass; both commands with masses share one run."""
    assert call(capsys, "needle", "--model", checkpoint, *GRID, "--output-path", tmp_path)[0] == 0
    code, out, _ = call(capsys, "attention", "--model", checkpoint, *GRID, "--output-path", tmp_path)
    assert code == 0
    assert "attention on the answer" in out
    assert "b of ln(mass/(1-mass))" in out
    plain, masses = (ssmax_eval.load_results(tmp_path / name) for name in ("needle", "attention"))
    shared = ["sample", "correct", "answer_nll", "answer_ranks", "prompt_sha256"]
    pd.testing.assert_frame_equal(plain[shared], masses[shared])
    run = find_runs(tmp_path / "attention")[0]
    before = run.rows_path.read_bytes()
    again = call(capsys, "needle", "--attention-mass", "--model", checkpoint, *GRID, "--output-path", tmp_path)
    assert again[0] == 0
    assert run.rows_path.read_bytes() == before
    page = next(path for path in (tmp_path / "reports").glob("attention-*.html")).read_text()
    assert "Figure 8" in page
    assert len(statistics.heads(statistics.with_series(masses))) == 12 * 2 * 4


def test_loss_prints_and_resumes(capsys, checkpoint, tmp_path):
    arguments = ("loss", "--model", checkpoint, *LOSS, "--output-path", tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 0
    assert "loss by tokens in front" in out
    assert "with all before minus alone" in out
    assert re.fullmatch("ssmax-eval: cost: .*\n", err)
    assert out.strip().splitlines()[-1].endswith(".html")
    run = find_runs(tmp_path / "loss")[0]
    whole = run.rows_path.read_bytes()
    lines = whole.splitlines(keepends=True)
    # killed in the middle of the second document
    run.record_path.unlink()
    run.rows_path.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    assert call(capsys, *arguments)[0] == 0
    rows = {row["sample"]: row for row in run.rows()}
    assert rows == {row["sample"]: row for row in map(json.loads, lines)}
    record = run.record()
    assert (record["probe"], record["tokens"]) == ("loss", 600)


def test_loss_in_parts_is_the_same_run(capsys, checkpoint, tmp_path):
    """How much is prefilled at a time is no part of what a run is."""
    arguments = ("loss", "--model", checkpoint, *LOSS, "--output-path", tmp_path, "--no-report")
    assert call(capsys, *arguments)[0] == 0
    assert call(capsys, *arguments, "--chunk", "50")[0] == 0
    assert len(find_runs(tmp_path / "loss")) == 1


def test_run_is_everything_on_one_page(capsys, checkpoint, tmp_path):
    code, out, _ = call(
        capsys, "run", "--model", f"A {HOSTILE}={checkpoint}", "--model", f"B={checkpoint}", "--attention", "softmax",
        "--attention", "ssmax", *GRID, "--documents", "2", "--window", "16", "--output-path", tmp_path,
    )  # fmt: skip
    assert code == 0
    page = (tmp_path / "reports" / re.search(r"run-\w+\.html", out).group()).read_text()
    assert "<h1>Needle in a haystack, attention on the needle, needed scale, loss</h1>" in page
    assert "<script>alert" not in page
    assert page.count("<figure") == 6  # found by length, grids, causes, attention, needed scale, loss
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert {run.folder.parent.name for run in find_runs(tmp_path)} == {"attention", "needed-scale", "loss"}
    assert len(find_runs(tmp_path)) == 12
    # the loss is read as far as the needle goes
    assert set(ssmax_eval.load_results(tmp_path / "loss")["context_length"]) == {128}


def test_json_of_all_probes(capsys, checkpoint, tmp_path):
    code, out, _ = call(
        capsys, "run", "--model", checkpoint, *GRID, "--documents", "2", "--window", "16", "--output-path", tmp_path,
        "--json", "--no-report",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    prompts = {"cells", "fading", "causes", "ceilings", "effective_lengths", "comparison", "headline", "verdict"}
    scale = {"needed_scale", "scale_laws", "scale_growth", "needed_s"}
    assert set(found) == {"runs", "failed", "loss", "context_gain", "report", *prompts, *scale}
    assert found["failed"] == 0
    assert len(found["fading"]) == 8
    assert isinstance(found["loss"][0]["position_start"], int)


def test_theta_factors_are_an_axis_of_the_loss(capsys, checkpoint, tmp_path):
    arguments = ("loss", "--model", checkpoint, *LOSS, "--rope-theta-factor", "1,50", "--output-path", tmp_path)
    assert call(capsys, *arguments, "--no-report")[0] == 0
    rows = ssmax_eval.load_results(tmp_path)
    assert set(rows["rope_theta_factor"]) == {1.0, 50.0}
    curve = statistics.loss_by_position(statistics.with_series(rows))
    assert curve["series"].nunique() == 2
    assert curve.groupby("series")["loss"].sum().nunique() == 2


def test_fading_without_a_model(capsys, tmp_path):
    code, out, _ = call(capsys, "fading", "--figure", tmp_path / "f.svg")
    assert code == 0
    assert "0.9428" in out
    assert "0.9951" in out
    assert (tmp_path / "f.svg").read_text().count("<svg") == 1
    code, out, _ = call(
        capsys, "fading", "--attention", "log-n", "--attention", "ssmax", "--attention", "ssmax", "--json"
    )
    assert {line["attention"] for line in json.loads(out)["by_lead"]} == {"log-n", "ssmax"}


def test_functions_are_the_commands(checkpoint, tmp_path):
    by_head = ssmax_eval.attention(str(checkpoint), context_lengths=[96], trials=1, output_path=tmp_path)
    assert set(by_head["layer"]) == {0, 1}
    rows = ssmax_eval.loss(str(checkpoint), context_length=128, documents=2, window=16, output_path=tmp_path)
    assert set(rows["measure"]) == {"position", "gain"}
    page = ssmax_eval.report(rows, tmp_path / "loss.html").read_text()
    assert "<h1>Loss</h1>" in page


def test_figures_take_axes_and_give_them_back(checkpoint, tmp_path):
    from matplotlib.figure import Figure

    from ssmax_eval.report import figures

    by_head = ssmax_eval.attention(str(checkpoint), context_lengths=[96, 128], trials=2, output_path=tmp_path)
    rows = ssmax_eval.loss(str(checkpoint), context_length=128, documents=2, window=16, output_path=tmp_path)
    named = statistics.with_series(rows)
    ax = Figure().subplots()
    assert figures.loss(ax, statistics.loss_by_position(named)) is ax
    assert figures.context_gain(ax, statistics.context_gain(named)) is ax
    assert figures.sorted_heads(ax, statistics.head_scores(by_head), 96) is ax
    assert figures.sorted_trials(ax, statistics.top_heads(by_head), 96) is ax


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("loss", "--context-length", "4"), "context length 4"),
        (("loss", "--documents", "0"), "documents 0"),
        (("loss", "--window", "1"), "window 1"),
        (("loss", "--chunk", "few"), "chunk 'few'"),
        (("loss", "--chunk", "0"), "chunk 0"),
        (("loss", "--text", "noise"), "text 'noise'"),
        (("loss", "--text", "no/such/file"), "no such file"),
        (("loss", "--context-length", "200", "--documents", "9", "--text", "{short}"), "documents 9"),
        (("attention", "--scoring", "generate"), "scoring"),
        (("needle", "--attention-mass", "--scoring", "generate"), "scoring 'generate'"),
        (("run", "--context-length", "100"), "context-length"),
        (("run", "--documents", "0"), "documents 0"),
        (("run", "--text", "no/such/file"), "no such file"),
        (("run", "--text", "{short}", "--documents", "9"), "documents 9"),
        (("attention", "--task", "multivalue"), "task 'multivalue'"),
        (("run", "--task", "multiquery"), "task 'multiquery'"),
        (("fading", "--attention", "nothing"), "unknown attention mechanism"),
        (("fading", "--largest", "3"), "largest n 3"),
        (("fading", "--train-length", "1"), "train_length"),
        (("fading", "--figure", "x.gif"), "x.gif"),
    ],
)
def test_wrong_input_is_one_clear_line(capsys, checkpoint, tmp_path, arguments, says):
    short = tmp_path / "short.txt"
    short.write_text("A short text. " * 50)
    given = [str(argument).format(short=short) for argument in arguments]
    model = [] if given[0] == "fading" else ["--model", checkpoint, "--output-path", tmp_path / "out"]
    code, out, err = call(capsys, *given, *model)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not list((tmp_path / "out").rglob("run.json"))
