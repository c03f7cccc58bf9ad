"""A sweep's file: every option of every probe, errors with file, line and what is allowed, the cost of all, and going on."""

import json

import pytest
import yaml

from ssmax_eval.cli import main
from ssmax_eval.errors import UserError
from ssmax_eval.probes import PROBES
from ssmax_eval.probes.options import options_of
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.results import load_results
from ssmax_eval.sweep import ON_THE_COMMAND_LINE, WHOLE, planned, read_sweep, takes_several

SWEEP = """\
models: [{model}, Other={model}]
trials: 1
context_lengths: 96,128
runs:
  - probe: needle
    models: {model}
    task: [single, digits]
    attention: [softmax, "ssmax:s=0.2"]
    depth_percents: [0, 100]
    rope-theta-factor: 2
    needles: [2, 4]
  - probe: loss
    context_length: 64
    window: 16
    documents: 2
    seed: [0, 1]
    key_context: 16
"""


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def file(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.format(model=checkpoint))
    return path


def test_a_sweep_runs_all_of_it_tells_its_cost_and_goes_on(file, capsys, monkeypatch, tmp_path):
    code, out, err = call(capsys, "run", file, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    # 2 tasks x 2 mechanisms (how many needles a task of one has tells no runs apart); 2 seeds x 2 models
    assert len(plan["runs"]) == 4 + 4
    assert plan["prompts"] == 4 * 4 + 4 * 2
    assert plan["tokens"] == 4 * 2 * (96 + 128) + 8 * 64
    asked = [
        (run["apart"].get("task"), run["apart"].get("seed")) for run in plan["runs"]
    ]  # what tells runs of a probe apart
    assert asked == [("single", None)] * 2 + [("digits", None)] * 2 + [(None, 0), (None, 0), (None, 1), (None, 1)]
    assert not (tmp_path / "results").exists()
    own, calls = TransformersReader.nll, []

    def stopped(self, ids, chunk=None):
        calls.append(ids.shape)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return own(self, ids, chunk)

    monkeypatch.setattr(TransformersReader, "nll", stopped)
    code, _, err = call(capsys, "run", file, "--no-report")
    assert code == 130, err
    assert "goes on where this one stopped" in err
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*/*/run.json")}
    assert len(before) >= 4
    monkeypatch.setattr(TransformersReader, "nll", own)
    code, out, err = call(capsys, "run", file)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rows = load_results("results")
    needle = rows[rows["probe"] == "needle"]
    assert set(needle["task"]) == {"single", "digits"}
    assert set(needle["attention"]) == {"softmax", "ssmax:s=0.2"}
    assert set(needle["rope_theta_factor"]) == {2.0}
    loss = rows[rows["probe"] == "loss"]
    assert {(model, seed) for model, seed in zip(loss["model"], loss["seed"], strict=True)} == {
        (model, seed) for model in ("tiny-llama", "Other") for seed in (0, 1)
    }
    assert (loss["measure"] == "key").sum() == 8
    assert out.strip().splitlines()[-1].endswith(".html")
    assert json.loads(call(capsys, "run", file, "--dry-run", "--json")[1])["prompts"] == 0


def test_every_option_of_every_probe_can_be_said(tmp_path, checkpoint):
    """In one file, each with its default, or with a value that it takes."""
    others = {
        "attention": "ssmax", "rope_theta": 10000.0, "rope_scaling": "yarn:4", "position": "nope", "device_map": "auto",
        "batch_size": 2, "chunk": 64, "limit_tokens": 10**6, "limit": 1, "tokenizer": "gpt2", "context_lengths": [96],
        "task": "single", "context_length": 64, "window": 16, "key_context": "auto", "key_model": "ssmax-bible-2m",
        "layers": "all",
    }  # fmt: skip
    path = tmp_path / "all.yaml"
    runs = []
    for kind in PROBES.values():
        entry = {"probe": kind.name}
        for each in options_of(kind.options):
            value = others.get(each.name, each.default)
            if each.name not in (*WHOLE, *ON_THE_COMMAND_LINE) and value is not None:
                entry[each.name] = list(value) if isinstance(value, tuple) else value
        runs.append(entry)
    path.write_text(yaml.safe_dump({"models": [str(checkpoint)], "output_path": "out", "report": False, "runs": runs}))
    asked = read_sweep(path).asked
    assert [each.kind.name for each in asked] == [*PROBES]
    for each, entry in zip(asked, runs, strict=True):
        for name in entry.keys() - {"probe", "layers", "factors"}:
            value = getattr(each.options, name)
            assert (list(value) if isinstance(value, tuple) else value) == entry[name], name
    axes = {each.name for each in options_of(PROBES["needle"].options) if takes_several(each)}
    assert axes >= {"attention", "rope_theta_factor", "context_lengths", "depth_percents", "controls"}
    assert not axes & {"task", "seed", "trials", "dtype", "device_map"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "runs:\n  - probe: needle\n    trails: 3\n",
            "line 3: key 'trails': no option of probe needle; did you mean trials",
        ),
        (
            "trails: 3\nruns:\n  - probe: needle\n",
            "line 1: key 'trails': no option of the sweep's probes; did you mean trials",
        ),
        ("documents: 3\nruns:\n  - probe: needle\n", "line 1: key 'documents': no option"),
        ("runs:\n  - probe: needel\n", "line 2: probe 'needel': allowed are .*; did you mean needle"),
        ("runs:\n  - trials: 1\n", "line 2: probe is missing: allowed are needle"),
        ("runs:\n  - probe: needle\n    trials: many\n", "line 3: trials 'many': allowed is a whole number"),
        ("runs:\n  - probe: needle\n    seed: 1\n    trials: 0\n", "line 4: trials 0: allowed are 1 to"),
        (
            "runs:\n  - probe: needle\n    seed: 1\n    task: [single, singel]\n",
            "line 4: task 'singel': .*did you mean single",
        ),
        ("runs:\n  - probe: needle\n    context_lengths: [0]\n", "line 3: context length 0"),
        ("runs:\n  - probe: needle\n    attention: ssmaxx\n", "line 3: unknown attention mechanism 'ssmaxx'"),
        ("runs:\n  - probe: needle\n    trials: 1\n    trials: 2\n", "line 4: key 'trials' is given twice"),
        ("models: {M: a, M: b}\nruns:\n  - probe: needle\n", "line 1: key 'M' is given twice"),
        ("limit-tokens: 9\nlimit_tokens: 8\nruns:\n  - probe: needle\n", "line 2: key 'limit_tokens' is given twice"),
        ("runs:\n  - probe: needle\n    trials: 010\n", "line 3: number '010': YAML reads it to base 8"),
        ("context_lengths: [0256]\nruns:\n  - probe: needle\n", "line 1: number '0256'"),
        ("runs:\n  - probe: needle\n    trials: 1:00\n", "line 3: number '1:00'"),
        ("runs:\n  - probe: needle\n    trials: []\n", r"line 3: trials \[\]: allowed is one value"),
        ("runs:\n  - probe: needle\n    device: [cpu, cuda]\n", "line 3: device .*: allowed is one value"),
        (
            "runs:\n  - probe: needle\n    output_path: x\n",
            "line 3: output_path: it is the whole sweep's; put it beside runs",
        ),
        ("dry_run: true\nruns:\n  - probe: needle\n", "line 1: dry_run: give --dry-run on the command line"),
        ("models: []\nruns:\n  - probe: needle\n", "line 1: models: none"),
        ("models: [3]\nruns:\n  - probe: needle\n", r"line 1: models \[3\]: allowed are texts"),
        ("models: nowhere/at-all\nruns:\n  - probe: needle\n    trials: 1\n", "line 1: model"),
        ("runs: needle\n", "line 1: runs: allowed is a list of entries"),
        ("runs:\n  - needle\n", "line 2: an entry of runs is text: allowed is a map"),
        ("- probe: needle\n", "line 1: the sweep is a list: allowed is a map"),
        ("", "line 1: the sweep is empty"),
        ("runs: [\n", "line 2: no YAML"),
        ("runs: !!python/object:os.system {}\n", "no YAML"),
        ("runs:\n  - probe: needle\n    trials: !!timestamp x\n", r"line 3: no YAML \(.*its tag is timestamp"),
        ("runs:\n  - probe: needle\n    trials: !!bool x\n", r"line 3: no YAML \(.*its tag is bool"),
        ("models: [!!int x]\nruns:\n  - probe: needle\n", r"line 1: no YAML \(.*x"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text, says, tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"sweep.yaml, {says}" if says.startswith("line") else says):
        planned(read_sweep(path), tmp_path / "out")
    assert [*tmp_path.iterdir()] == [path]


def test_anchors_are_read_and_what_is_beside_the_file_is_refused(file, capsys):
    file.write_text("base: &base {trials: 1}\n" + file.read_text())
    assert "line 1: key 'base'" in call(capsys, "run", file, "--dry-run")[2]
    file.write_text(
        "runs:\n  - &one {probe: needle, trials: 3, context_lengths: [96]}\n  - {<<: *one, trials: 2, task: recall}\n"
    )
    assert [each.options.trials for each in read_sweep(file).asked] == [3, 2]
    code, _, err = call(capsys, "run", file, "--trials", "3", "--dry-run")
    assert code == 2
    assert err.startswith(
        "ssmax-eval: error: --trials: beside a sweep's file it is said in the file; allowed are --dry-run"
    )
    # also of what would be asked anyway: the file says otherwise
    assert "--trials: beside" in call(capsys, "run", file, "--trials", "8", "--dry-run")[2]
    file.write_text(file.read_text() + "output_path: elsewhere\nreport: false\n")
    assert call(capsys, "run", file, "--output-path", "results", "--report")[0] == 0
    assert [path.name for path in file.parent.glob("*/needle")] == ["needle"]
    assert (file.parent / "results" / "needle").is_dir()
    assert "--model: beside" in call(capsys, "run", file, "--model", "ssmax-bible-2m")[2]
    assert "cannot be read" in call(capsys, "run", "nowhere.yaml")[2]


def test_what_only_the_tokenizer_tells_has_its_line_too_and_nothing_is_run(file, capsys, tmp_path):
    file.write_text(
        file.read_text()
        + "  - probe: loss\n    context_length: 64\n    key_model: ssmax-bible-2m\n    key_context: 16\n"
    )
    for more in ([], ["--dry-run"]):
        code, out, err = call(capsys, "run", file, *more)
        assert (code, out) == (2, "")
        assert f"{file}, line 20: key model 'ssmax-bible-2m': its tokenizer makes other tokens" in err
    assert not list(tmp_path.rglob("rows.jsonl"))
