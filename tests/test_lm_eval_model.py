"""Model type `ssmax-eval` in lm-eval: stock's numbers, mechanisms and RoPE as model_args, guards; the commands and the samples left."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from architectures import build_small
from harnessed import Instance, TaskManager, evaluate, ours, stock, tasks_path
from transformers import AutoModelForCausalLM, GenerationConfig

from ssmax_eval import load_results
from ssmax_eval.cli import main
from ssmax_eval.errors import UserError
from ssmax_eval.models.sources import BUNDLED
from ssmax_eval.setting import Setting

pytestmark = pytest.mark.filterwarnings("ignore")
GRID = {"context_lengths": [96, 160], "depth_percents": [0, 50, 100], "trials": 2}
TEXTS = [
    ("The old harbour lay", " quiet in the morning."),
    ("She counted to", " ten, and then to twenty, and forgot why."),
    ("", "A beginning without anything before it."),
    ("The answer is ", "42"),
    ("The old harbour lay", " a"),
    ("The old harbour lay", " b"),
    ("x" * 300, " y"),
]


def requests(pairs, kind="loglikelihood"):
    return [Instance(kind, {}, pair, 0, ("texts", i, 1)) for i, pair in enumerate(pairs)]


BUNDLED_TOO = pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ssmax-bible-2m", "softmax-bible-2m"))]
)


@BUNDLED_TOO
@pytest.mark.parametrize("batch_size", [3, "auto"])
def test_loglikelihoods_are_stocks(name, batch_size, checkpoint):
    """With one-token choices after one context, which lm-eval reads once, and without."""
    folder = checkpoint if name == "tiny" else BUNDLED / name
    mine, theirs = ours(folder, dtype="float32", batch_size=batch_size), stock(folder, dtype="float32", max_length=1024)
    for texts in (TEXTS, TEXTS[:4]):
        found = mine.loglikelihood(requests(texts), disable_tqdm=True)
        expected = theirs.loglikelihood(requests(texts), disable_tqdm=True)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-3)


@BUNDLED_TOO
def test_rolling_and_generation_are_stocks(name, checkpoint):
    folder = checkpoint if name == "tiny" else BUNDLED / name
    mine, theirs = ours(folder, dtype="float32"), stock(folder, dtype="float32", max_length=4096)
    text = "The surveyor met the seamstress at the inn. " * 60
    asked = requests([(text, {"until": ["."], "max_gen_toks": 8, "do_sample": False})], "generate_until")
    # longer than the trained length: stock would have cut the prompt's start off, had nobody set max_length; ours makes room
    assert mine.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)
    limited = ours(folder, dtype="float32", max_length=300)
    with pytest.raises(UserError, match="the model's max_length is 300, and lm-eval would cut"):
        limited.generate_until(asked, disable_tqdm=True)
    # a rolling log-likelihood is in windows of the model's length, for both
    theirs = stock(folder, dtype="float32", max_length=300)
    rolling = [lm.loglikelihood_rolling(requests([(text,)]), disable_tqdm=True)[0] for lm in (limited, theirs)]
    assert rolling[0] == pytest.approx(rolling[1], rel=1e-5)


UNEQUAL = [" ".join((["the river of stone and the winter rain was in a quiet field"] * 9)[:n]) for n in (1, 2, 4, 6)]
WRITE = {"until": ["</s>"], "max_gen_toks": 6, "do_sample": False}


def of_plain_transformers(folder, texts, tokenizer):
    """Return the nll of " a" after each text, and what greedy decoding writes, one text at a time by a model loaded anew for each."""
    nats, written = [], []
    for text in texts:
        # anew, as dynamic RoPE keeps the frequencies of what it read
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        ids, chosen = tokenizer(text, return_tensors="pt").input_ids, tokenizer(" a").input_ids
        with torch.no_grad():
            nats.append(float(model(ids, use_cache=False).logits[0, -1].log_softmax(-1)[chosen[0]]))
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, pad_token_id=1
            )
        written.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return nats, written


@pytest.mark.parametrize(
    "kind",
    [
        "llama(dynamic)",
        "phi3(longrope)",
        "rwkv",
        "deepseek_v4",
        "whisper",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "xlstm",
                "recurrent_gemma",
                "mvp",
                "trocr",
                "blenderbot",
                "bigbird_pegasus",
                "mamba",
                "bloom",
                "llama",
            )
        ),
    ],
)
def test_the_batch_size_changes_nothing(kind, tmp_path, tokenizer):
    """Texts of unequal length in one batch, where padding is read as text, counted as positions, or turns RoPE otherwise."""
    build_small(kind).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    nats, written = of_plain_transformers(tmp_path, UNEQUAL, tokenizer)
    lm = ours(tmp_path, dtype="float32", batch_size=4)
    found = lm.loglikelihood(requests([(text, each) for text in UNEQUAL for each in (" a", " of")]), disable_tqdm=True)
    assert [each for each, _ in found[::2]] == pytest.approx(nats, abs=1e-3)
    generated = lm.generate_until(requests([(text, WRITE) for text in UNEQUAL], "generate_until"), disable_tqdm=True)
    assert generated == written


def test_what_a_generation_config_forbids_to_repeat_is_not_padding(checkpoint, tmp_path, tokenizer):
    """The padding is an end token, which would count as read, and so could not be written."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.generation_config = GenerationConfig(no_repeat_ngram_size=1, eos_token_id=1, pad_token_id=1, bos_token_id=0)
    with torch.no_grad():  # the first text ends at once
        out = model(tokenizer(UNEQUAL[0], return_tensors="pt").input_ids, output_hidden_states=True)
        last = out.hidden_states[-1][0, -1]
        model.lm_head.weight[1] = last / last.square().sum() * (out.logits[0, -1].max() + 1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _, written = of_plain_transformers(tmp_path, UNEQUAL, tokenizer)
    assert written[0] == ""
    lm = ours(tmp_path, dtype="float32", batch_size=4)
    asked = requests([(text, WRITE) for text in UNEQUAL], "generate_until")
    assert lm.generate_until(asked, disable_tqdm=True) == written


def test_most_models_read_unequal_texts_together(checkpoint, caplog):
    """And what proves that is read once."""
    lm = ours(checkpoint, dtype="float32", batch_size=4)
    batches = []
    lm.model.register_forward_hook(lambda module, args, out: batches.append(len(out.logits)))
    for _ in range(2):
        batches.clear()
        lm.loglikelihood(requests([(text, each) for text in UNEQUAL for each in (" a", " of")]), disable_tqdm=True)
        lm.generate_until(requests([(text, WRITE) for text in UNEQUAL], "generate_until"), disable_tqdm=True)
    assert set(batches) == {4}
    assert "padded" not in caplog.text


def test_only_the_answers_rows_reach_the_head(checkpoint):
    lm = ours(checkpoint, batch_size=4)
    rows = []
    lm.model.get_output_embeddings().register_forward_hook(lambda module, args, out: rows.append(args[0].shape[:2]))
    evaluate(lm, "ssmax_needle", pretrained=str(checkpoint), **GRID)
    assert rows
    assert max(count for _, count in rows) <= 8
    assert {batch for batch, _ in rows} == {4, 2}  # 6 prompts a length, lengths apart


def test_mechanisms_and_rope_are_model_arguments(checkpoint):
    plain, changed = ours(checkpoint), ours(checkpoint, attention="ssmax:s=0.9", rope_theta_factor=50)
    (_, first), (_, second) = (
        (lm, lm.loglikelihood(requests(TEXTS[:2]), disable_tqdm=True)) for lm in (plain, changed)
    )
    assert first[0][0] != pytest.approx(second[0][0], abs=1e-3)
    told = changed.get_model_info()["ssmax_eval"]
    assert told["attention"]["attention"] == "ssmax:s=0.9"
    assert told["attention"]["swapped"] is True
    assert told["rope"]["effective"]["effective_theta"] == pytest.approx(500_000, rel=1e-3)
    with Setting.of(rope_theta_factor=50)(plain.model) as effective:
        assert told["rope"] == effective.record(plain.model)["rope"]
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft": "x"}, "model_args peft: not taken by model type ssmax-eval; allowed are pretrained, attention"),
        ({"attention": "sharper"}, "sharper"),
        ({"rope_theta_factor": 0}, "rope_theta_factor 0"),
        ({"rope_scaling": "yarn"}, "rope scaling 'yarn'"),
        ({"dtype": "float3"}, "dtype 'float3'"),
    ],
)
def test_wrong_model_arguments(checkpoint, options, message):
    with pytest.raises(UserError, match=message):
        ours(checkpoint, **options)


def test_trap_17_a_response_cache_is_of_one_model_and_setting(checkpoint, tmp_path):
    from lm_eval.api.model import CachingLM

    path = str(tmp_path / "cache.db")
    for _ in range(2):
        cached = CachingLM(ours(checkpoint), path)
        first = cached.loglikelihood(requests(TEXTS[:2]))
        cached.dbdict.close()
    assert first == ours(checkpoint).loglikelihood(requests(TEXTS[:2]))
    for other in ({"attention": "ssmax"}, {"rope_theta_factor": 10}, {"dtype": "bfloat16"}):
        with pytest.raises(UserError, match="its responses are of another model or setting"):
            CachingLM(ours(checkpoint, **other), path)
    # stock's responses to our requests are not kept: the cache would not know whose they are
    cached = CachingLM(stock(checkpoint), str(tmp_path / "stock.db"))
    evaluate(cached, "ssmax_needle", 2, pretrained=str(checkpoint), **GRID)
    assert len(cached.dbdict) == 0


class OwnTasksOnly(TaskManager):
    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        super().__init__(verbosity, include_path, False, metadata)


def call(capsys, monkeypatch, *arguments):
    """Run the command line in this process, lm-eval's state put back afterwards; return exit code, stdout, stderr."""
    # without the thousands of files of lm-eval's own tasks, which take seconds to list
    monkeypatch.setattr("lm_eval.tasks.TaskManager", OwnTasksOnly)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


ON = ("lm-eval", "--model", "ssmax-eval", "--tasks", "ssmax_needle", "--metadata", json.dumps(GRID))


def test_the_command_runs_lm_eval_and_report_draws_what_it_wrote(capsys, monkeypatch, checkpoint, tmp_path):
    code, out, _ = call(
        capsys, monkeypatch, *ON, "--model_args", f"pretrained={checkpoint},attention=ssmax", "--output_path", tmp_path / "out",
        "--log_samples", "--batch_size=auto",
    )  # fmt: skip
    assert code == 0
    assert "acc_160" in out
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert results["config"]["ssmax_eval"]["attention"]["attention"] == "ssmax"
    assert results["configs"]["ssmax_needle"]["metadata"]["parameters"]["context_lengths"] == [96, 160]
    assert results["results"]["ssmax_needle"]["acc_stderr,none"] != "N/A"
    rows = load_results(tmp_path / "out")
    assert rows.groupby(["attention", "context_length"]).size().to_dict() == {("ssmax", 96): 6, ("ssmax", 160): 6}
    assert call(capsys, monkeypatch, "needle", "--model", checkpoint, "--attention", "ssmax", "--context-lengths", "96,160",
                "--depth-percents", "0,50,100", "--trials", 2, "--output-path", tmp_path / "native", "--no-report")[0] == 0  # fmt: skip
    native = load_results(tmp_path / "native").set_index("prompt_sha256")
    rows = rows.set_index("prompt_sha256").loc[native.index]
    for column in (
        "correct",
        "task",
        "haystack",
        "context_length",
        "depth_percent",
        "trial",
        "attention_swapped",
        "rope",
        "sample",
    ):
        assert rows[column].tolist() == native[column].tolist(), column
    assert rows["answer_nll"].tolist() == pytest.approx(native["answer_nll"].tolist(), abs=1e-4)
    code, out, _ = call(
        capsys, monkeypatch, "report", tmp_path / "out", tmp_path / "native", "--out", tmp_path / "page.html"
    )
    assert code == 0
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_samples_of_lm_evals_own_model_type_and_masses_are_read(capsys, monkeypatch, tmp_path):
    folder = BUNDLED / "ssmax-bible-2m"
    small = json.dumps({**GRID, "trials": 1, "context_lengths": [96]})
    for model, arguments, task in (
        ("hf", f"pretrained={folder},trust_remote_code=True", "ssmax_needle"),
        ("ssmax-eval", "pretrained=ssmax-bible-2m", "ssmax_attention_mass"),
    ):
        out = ("--output_path", tmp_path / model, "--log_samples", "--metadata", small)
        assert (
            call(
                capsys,
                monkeypatch,
                "lm-eval",
                "run",
                "--model",
                model,
                "--model_args",
                arguments,
                "--tasks",
                task,
                *out,
            )[0]
            == 0
        )
    stock_rows = load_results(tmp_path / "hf")
    assert set(stock_rows["model"]) == {"ssmax-bible-2m"}
    assert set(stock_rows["attention"]) == {"ssmax"}  # the mechanism of its config
    # a model of another folder, but of one name: lm-eval does not say that its weights are others
    other = shutil.copytree(tmp_path / "hf", tmp_path / "other")
    told = next(other.rglob("results_*.json"))
    told.write_text(told.read_text().replace(str(folder), "elsewhere/ssmax-bible-2m"))
    logged = next(other.rglob("samples_*.jsonl"))
    logged.write_text(re.sub(r'"nll": [0-9.e-]+', '"nll": 1.5', logged.read_text()))
    both = load_results(tmp_path / "hf", other)
    assert both["series"].nunique() == 2
    assert len(both) == 2 * len(stock_rows)
    shutil.rmtree(other)
    assert all(isinstance(mass, list) for mass in load_results(tmp_path / "ssmax-eval")["mass_answer"])
    assert call(capsys, monkeypatch, "report", tmp_path, "--out", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "attention: single" in page
    assert call(capsys, monkeypatch, "pack", tmp_path, "--out", tmp_path / "packed" / "lm.zip")[0] == 0
    packed, logged = load_results(tmp_path / "packed"), load_results(tmp_path / "hf", tmp_path / "ssmax-eval")
    by = ["run_id", "sample"]
    pd.testing.assert_frame_equal(
        packed.sort_values(by, ignore_index=True), logged.sort_values(by, ignore_index=True), check_like=True
    )
    assert set(packed["probe"]) == {"needle", "attention"}
    assert len(load_results(tmp_path)) == len(packed)  # each run once
    assert call(capsys, monkeypatch, "report", tmp_path / "packed", "--out", tmp_path / "packed.html")[0] == 0
    (tmp_path / "packed" / "lm.zip").unlink()
    file = next((tmp_path / "hf").rglob("samples_*.jsonl"))
    whole = file.read_bytes()
    for broken, message in (
        (b'{"doc": 1}', "no rows.jsonl in or below it"),
        (whole + b'{"doc": {}}', "line 4 is not a sample of ours"),
    ):
        file.write_bytes(broken)
        code, _, err = call(capsys, monkeypatch, "report", file, "--out", tmp_path / "other.html")
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err
        assert not (tmp_path / "other.html").exists()
    file.write_bytes(whole)
    next((tmp_path / "hf").rglob("results_*.json")).unlink()
    assert "which says of what model they are, cannot be read" in call(capsys, monkeypatch, "report", file)[2]


def test_a_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, checkpoint):
    for arguments, message in (
        (
            ("--tasks", "ssmax_nedle", "--model_args", f"pretrained={checkpoint}"),
            "lm-eval: Tasks not found: ssmax_nedle",
        ),
        ((*ON[3:], "--model_args", "pretrained=nowhere"), "model 'nowhere': no such path"),
        (
            (*ON[3:], "--model_args", f"pretrained={checkpoint}", "--apply_chat_template"),
            "leave --apply_chat_template out",
        ),
        ((*ON[3:], "--model", "sssmax", "--model_args", f"pretrained={checkpoint}"), "sssmax"),
    ):
        code, _, err = call(capsys, monkeypatch, "lm-eval", "--model", "ssmax-eval", *arguments)
        assert code == 2, err
        line = err.strip().splitlines()[-1]
        assert line.startswith("ssmax-eval: error:")
        assert message in line


def test_lm_eval_validates_every_task(capsys, monkeypatch):
    names = ",".join(file.stem for file in tasks_path().glob("*.yaml"))
    code, out, _ = call(capsys, monkeypatch, "lm-eval", "validate", "--tasks", names)
    assert code == 0
    assert "All tasks found and valid" in out
    assert "ssmax_needle_32768" in call(capsys, monkeypatch, "lm-eval", "ls", "tasks")[1]
    assert call(capsys, monkeypatch, "lm-tasks-path")[1].strip() == str(tasks_path())


def test_without_lm_eval_everything_else_works(tmp_path):
    """Probing, reading and reporting import neither lm-eval nor datasets; the command says what to install."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lm_eval", "datasets"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
import ssmax_eval, ssmax_eval.cli, ssmax_eval.harness.samples
assert "torch" not in sys.modules
ssmax_eval.cli.main(["lm-eval", "--help"])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 2
    assert "lm_eval is not installed; run: pip install 'ssmax-eval[lm-eval]'" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_commands_of_the_readme(checkpoint, tmp_path):
    """The three lines as they stand there, by the shell, on a tiny model and a small grid."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    lines = next(
        block for block in re.findall(r"```sh\n(.*?)```", readme, re.S) if "lm-tasks-path" in block
    ).splitlines()
    assert len(lines) == 3
    here = f"{sys.executable} -m"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    for line in lines:
        words = re.sub(r"(^|\()ssmax-eval", rf"\1{here} ssmax_eval", re.sub("^lm_eval", f"{here} lm_eval", line))
        words = words.replace("./my-model", str(checkpoint))
        words += " --metadata context_lengths=[96,160] trials=1" if "--tasks" in line else ""
        out = subprocess.run(
            words, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert out.returncode == 0, out.stderr[-2000:]
        assert "acc_160" in out.stdout or line is lines[2]
    assert "attention: single" in (tmp_path / "reports" / "lm-eval.html").read_text()
