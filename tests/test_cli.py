"""The command line as a user meets it: help, runs, and thirty wrong inputs of one clear line and exit code 2 each."""

import gzip
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from tiny import build

from ssmax_eval.cli import dashed, main
from ssmax_eval.errors import UserError
from ssmax_eval.probes.by_model import default_task
from ssmax_eval.readers.transformers import TransformersReader


def call(capsys, *arguments):
    """Run the command line in this process; return exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


def without_note(err):
    """Return stderr without the note that needles of so short a grid stand off their depth."""
    return re.sub(r"ssmax-eval: note: haystack text: .* needles stand .*\n", "", err)


GRID = ("--context-lengths", "96,128", "--depth-percents", "0,50,100", "--trials", "2")


def test_needle_prints_the_grid_and_ends_with_the_reports_path(capsys, checkpoint, tmp_path):
    code, out, err = call(capsys, "needle", "--model", checkpoint, *GRID, "--output-path", tmp_path)
    assert code == 0
    last = out.strip().splitlines()[-1]
    assert last.endswith(".html")
    assert (tmp_path / "reports").is_dir()
    assert "50%" in out
    assert "mean" in out
    assert re.fullmatch("ssmax-eval: cost: .*\n", without_note(err))  # and no progress bar where nobody looks
    runs = list(tmp_path.rglob("run.json"))
    assert len(runs) == 1
    assert len((runs[0].parent / "rows.jsonl").read_text().splitlines()) == 12
    before = (runs[0].parent / "rows.jsonl").read_bytes()
    assert call(capsys, "needle", "--model", checkpoint, *GRID, "--output-path", tmp_path)[0] == 0
    assert (runs[0].parent / "rows.jsonl").read_bytes() == before
    assert len(list(tmp_path.rglob("run.json"))) == 1


def test_json_is_one_object(capsys, checkpoint, tmp_path):
    code, out, _ = call(
        capsys, "needle", "--model", checkpoint, *GRID, "--output-path", tmp_path, "--json", "--no-report"
    )
    assert code == 0
    result = json.loads(out)
    assert len(result["cells"]) == 6
    assert result["report"] is None


def test_axes_make_runs_and_series(capsys, checkpoint, tmp_path):
    axes = (
        "--attention",
        "softmax",
        "--attention",
        "ssmax",
        "--rope-theta-factor",
        "1,50",
        "--controls",
        "no-needle,needle-only",
    )
    code, out, _ = call(capsys, "needle", "--model", f"A={checkpoint}", *GRID, *axes, "--output-path", tmp_path)
    assert code == 0
    assert out.count("run ") == 4
    for series in ("A (softmax)", "A (ssmax swapped in)", "A (softmax, theta x50)", "A (ssmax swapped in, theta x50)"):
        assert f"{series}: single" in out
    assert "needle-only:" in out


def test_underscores_are_accepted(capsys, checkpoint, tmp_path):
    assert dashed("--context_lengths=9_6") == "--context-lengths=9_6"
    arguments = ["--context_lengths", "96", "--depth_percents", "50", "--trials", "1", f"--output_path={tmp_path}"]
    assert call(capsys, "needle", "--model", checkpoint, *arguments)[0] == 0


def test_report_and_models_and_mechanisms(capsys, checkpoint, tmp_path):
    call(capsys, "needle", "--model", checkpoint, *GRID, "--output-path", tmp_path, "--no-report")
    page = tmp_path / "pages" / "x.html"
    code, out, _ = call(capsys, "report", tmp_path, "--out", page, "--figures", tmp_path / "figures")
    assert (code, out.strip()) == (0, str(page))
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".png", ".pdf"}
    code, out, _ = call(capsys, "models", checkpoint.parent)
    assert code == 0
    assert "tiny-llama" in out
    assert "LlamaForCausalLM" in out
    code, out, _ = call(capsys, "mechanisms")
    assert "ssmax-bias" in out


@pytest.mark.parametrize("command", [[], ["needle"], ["report"], ["models"], ["mechanisms"]])
def test_help_is_instant(command):
    """It imports none of the libraries that take seconds; how long it takes is .2 s where nothing else runs."""
    heavy = {"torch", "transformers", "pandas", "matplotlib", "seaborn", "scipy"}
    code = f"""
import sys
from ssmax_eval.cli import main
try:
    main({[*command, "--help"]!r})
except SystemExit as done:
    assert done.code == 0
assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage" in out.stdout


def gguf(folder):
    path = folder / "broken.gguf"
    path.write_bytes(b"GGUF but no more")
    return path


def broken_safetensors(folder, checkpoint):
    copy = shutil.copytree(checkpoint, folder / "broken")
    (copy / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header, for sure")
    return copy


def without_tokenizer(folder, checkpoint):
    copy = shutil.copytree(checkpoint, folder / "mute")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    return copy


def gpt2(folder, checkpoint):
    copy = shutil.copytree(checkpoint, folder / "gpt2")
    build("GPT2", vocab_size=1024, max_position_embeddings=256).save_pretrained(copy)
    return copy


def file(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def damaged_gzip(folder):
    content = bytearray(gzip.compress(b"A sentence stands here. " * 500))
    content[30:60] = b"\0" * 30
    return file(folder, "damaged.txt.gz", bytes(content))


def with_config(folder, checkpoint, **changes):
    copy = shutil.copytree(checkpoint, folder / "changed")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def bert(folder, checkpoint):
    from transformers import BertConfig, BertForMaskedLM

    copy = shutil.copytree(checkpoint, folder / "bert")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    BertForMaskedLM(BertConfig(vocab_size=1024, **sizes)).save_pretrained(copy)
    return copy


def small_embedding(folder, checkpoint):
    copy = shutil.copytree(checkpoint, folder / "small")
    build("Llama", vocab_size=900, max_position_embeddings=512).save_pretrained(copy)
    return copy


WRONG = {
    "encoder": lambda t, c: ["--model", bert(t, c)],
    "tokenizer of another model": lambda t, c: ["--model", small_embedding(t, c)],
    "config that does not hold together": lambda t, c: ["--model", with_config(t, c, max_position_embeddings="512")],
    "weights of other shapes": lambda t, c: ["--model", with_config(t, c, intermediate_size=64)],
    "mechanism entry of the wrong type": lambda t, c: ["--model", with_config(t, c, ssmax={"attention": 3})],
    "mechanism entry with a wrong length": lambda t, c: [
        "--model",
        with_config(t, c, ssmax={"attention": "log-n", "train_length": "64"}),
    ],
    "label that cannot be printed": lambda t, c: ["--model", f"a\x01b={c}"],
    "label too long": lambda t, c: ["--model", f"{'x' * 300}={c}"],
    "path too long": lambda t, c: ["--model", t / ("x" * 300)],
    "home of nobody": lambda t, c: ["--model", "~nosuchuser/x"],
    "mechanism option twice": lambda t, c: ["--attention", "ssmax:s=1,s=2"],
    "mechanism option that overflows": lambda t, c: ["--attention", "ssmax:s=1e308"],
    "mechanism with a fractional length": lambda t, c: ["--attention", "ssmax:train_length=2.5"],
    "mechanism with a length beyond reason": lambda t, c: ["--attention", "learned-p:train_length=1e12"],
    "second mechanism wrong": lambda t, c: ["--attention", "ssmax", "--attention", "llama4:floor_scale=-1"],
    "theta factor beyond reason": lambda t, c: ["--rope-theta-factor", "1e305"],
    "rope scaling beyond reason": lambda t, c: ["--rope-scaling", "ntk:1e308"],
    "length beyond reason": lambda t, c: ["--context-lengths", "1000000000000"],
    "trials beyond reason": lambda t, c: ["--trials", "99999999999999999999", "--limit", "2"],
    "two batch sizes": lambda t, c: ["--batch-size", "1,2"],
    "haystack of no name": lambda t, c: ["--haystack", ""],
    "haystack damaged": lambda t, c: ["--haystack", damaged_gzip(t)],
    "device with a colon": lambda t, c: ["--device", "cpu:"],
    "no such path": lambda t, c: ["--model", t / "nowhere"],
    "not a model": lambda t, c: ["--model", t],
    "not a gguf file": lambda t, c: ["--model", file(t, "weights.bin", b"x")],
    "broken gguf": lambda t, c: ["--model", gguf(t)],
    "empty reference": lambda t, c: ["--model", ""],
    "empty label": lambda t, c: ["--model", f"={c}"],
    "hub id offline": lambda t, c: ["--model", "nobody/such-model"],
    "broken safetensors": lambda t, c: ["--model", broken_safetensors(t, c)],
    "tokenizer missing": lambda t, c: ["--model", without_tokenizer(t, c)],
    "config is not json": lambda t, c: ["--model", file(t, "config.json", b"{").parent],
    "config is not a model's": lambda t, c: ["--model", file(t, "config.json", b"{}").parent],
    "same label twice": lambda t, c: ["--model", c, "--model", c],
    "model without RoPE": lambda t, c: ["--model", gpt2(t, c), "--rope-theta-factor", "2"],
    "longer than learned positions": lambda t, c: ["--model", gpt2(t, c), "--context-lengths", "96,512"],
    "length shorter than needle and question": lambda t, c: ["--context-lengths", "12"],
    "length zero": lambda t, c: ["--context-lengths", "0"],
    "length not a number": lambda t, c: ["--context-lengths", "96,many"],
    "lengths empty": lambda t, c: ["--context-lengths", ","],
    "depth 120": lambda t, c: ["--depth-percents", "0,120"],
    "depth negative": lambda t, c: ["--depth-percents=-1"],
    "depth nan": lambda t, c: ["--depth-percents", "nan"],
    "trials 0": lambda t, c: ["--trials", "0"],
    "trials not a number": lambda t, c: ["--trials", "few"],
    "limit 0": lambda t, c: ["--limit", "0"],
    "batch size 0": lambda t, c: ["--batch-size", "0"],
    "batch size a word": lambda t, c: ["--batch-size", "big"],
    "unknown task": lambda t, c: ["--task", "poem"],
    "unknown value": lambda t, c: ["--value", "emoji"],
    "too many needles": lambda t, c: ["--task", "multikey", "--needles", "1000"],
    "unknown scoring": lambda t, c: ["--scoring", "judge"],
    "unknown control": lambda t, c: ["--controls", "placebo"],
    "unknown mechanism": lambda t, c: ["--attention", "sigmoidal"],
    "unknown mechanism option": lambda t, c: ["--attention", "ssmax:k=1"],
    "mechanism option not a number": lambda t, c: ["--attention", "ssmax:s=large"],
    "theta -1": lambda t, c: ["--rope-theta", "-1"],
    "theta factor 0": lambda t, c: ["--rope-theta-factor", "0"],
    "theta and theta factor": lambda t, c: ["--rope-theta", "5000", "--rope-theta-factor", "2"],
    "theta as it is": lambda t, c: ["--rope-theta", "10000"],
    "unknown rope scaling": lambda t, c: ["--rope-scaling", "spiral:2"],
    "rope scaling without factor": lambda t, c: ["--rope-scaling", "yarn"],
    "dynamic below the trained length": lambda t, c: ["--rope-scaling", "dynamic:4"],
    "haystack missing": lambda t, c: ["--haystack", t / "no.txt"],
    "haystack empty": lambda t, c: ["--haystack", file(t, "empty.txt", b" \n")],
    "haystack binary": lambda t, c: ["--haystack", file(t, "binary.txt", bytes(range(256)))],
    "haystack with nul": lambda t, c: ["--haystack", file(t, "nul.txt", b"Text. \0 More.")],
    "haystack folder without text": lambda t, c: ["--haystack", t],
    "haystack of a task that makes its own": lambda t, c: ["--task", "digits", "--haystack", "noise"],
    "dataset that is not there": lambda t, c: ["--haystack", "hf:nobody/such-data"],
    "cuda on a cpu machine": lambda t, c: ["--device", "cuda"],
    "unknown device": lambda t, c: ["--device", "tpu"],
    "unknown dtype": lambda t, c: ["--dtype", "int3"],
    "output path is a file": lambda t, c: ["--output-path", file(t, "taken", b"x")],
    "unknown option": lambda t, c: ["--colour", "red"],
    "empty task": lambda t, c: ["--task", ""],
    "empty value": lambda t, c: ["--value", ""],
    "empty haystack": lambda t, c: ["--haystack", ""],
    "empty attention": lambda t, c: ["--attention", ""],
    "empty controls": lambda t, c: ["--controls", ""],
    "empty model": lambda t, c: ["--model", ""],
    "empty position": lambda t, c: ["--position", ""],
    "less than no needles for a task of one": lambda t, c: ["--needles", "-1"],
    "more needles than cities for a task of one": lambda t, c: ["--task", "recall", "--needles", "9999"],
    "attended beyond all": lambda t, c: ["--attended", "2"],
    "blow up 0": lambda t, c: ["--blow-up", "0"],
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_clear_line_and_exit_code_2(case, capsys, checkpoint, tmp_path):
    if case == "cuda on a cpu machine" and torch.cuda.is_available():
        pytest.skip("this machine has one")
    given = [str(a) for a in WRONG[case](tmp_path, checkpoint)]
    model = [] if "--model" in given else ["--model", checkpoint]
    lengths = [] if "--context-lengths" in given else ["--context-lengths", "96"]
    out_path = [] if "--output-path" in given else ["--output-path", tmp_path / "out"]
    code, out, err = call(capsys, "needle", *model, *lengths, "--trials", "1", *out_path, *given)
    assert code == 2, (out, err)
    assert err.startswith("ssmax-eval: error: ")
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.rglob("rows.jsonl"))


@pytest.mark.parametrize(
    "arguments", [["report", "nowhere"], ["report"], ["models", "nowhere"], ["poem"], ["needle", "--model"]]
)
def test_wrong_commands_too(arguments, capsys, tmp_path):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_report_of_a_folder_without_runs(capsys, tmp_path):
    code, _, err = call(capsys, "report", tmp_path, "--out", tmp_path / "x.html")
    assert code == 2
    assert "no rows.jsonl" in err
    assert not (tmp_path / "x.html").exists()


def test_interrupt_says_how_to_go_on(capsys, checkpoint, tmp_path, monkeypatch):

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(TransformersReader, "answers", interrupted)
    code, _, err = call(capsys, "needle", "--model", checkpoint, *GRID, "--output-path", tmp_path)
    assert code == 130
    assert "goes on" in err
    assert not list(tmp_path.rglob("run.json"))
    monkeypatch.setattr("ssmax_eval.report.report", interrupted)  # which stores nothing to go on from
    code, _, err = call(capsys, "report", tmp_path)
    assert (code, err) == (130, "ssmax-eval: interrupted\n")


def test_the_task_follows_the_models(checkpoint, tmp_path):
    learned = shutil.copytree(checkpoint, tmp_path / "learned")
    (learned / "training.json").write_text('{"task": "recall"}')
    assert default_task([str(checkpoint)]) == "single"
    assert default_task([str(learned)]) == "recall"
    with pytest.raises(UserError, match="learned different ones .recall, single.; say which: --task"):
        default_task([str(checkpoint), str(learned)])


def test_recipes_and_retrofit(capsys, checkpoint, tmp_path):
    code, out, _ = call(capsys, "recipes")
    assert code == 0
    assert "train_length" in out
    code, out, _ = call(capsys, "retrofit", "--model", checkpoint, "--out", tmp_path / "new")
    assert (code, out.strip()) == (0, str(tmp_path / "new"))
    code, out, _ = call(capsys, "needle", "--model", tmp_path / "new", *GRID, "--output-path", tmp_path, "--no-report")
    assert code == 0
    assert "ssmax" in out


def test_alone_it_is_its_help_and_version_is_told(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert "Commands:" in out
    code, out, err = call(capsys, "--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"ssmax-eval \d+\.\d+\.\d+\S*\n", out)


def test_a_log_wraps_no_cell(capsys):
    from ssmax_eval.terminal import print_table

    long = "/".join(["folder"] * 60)
    print_table(["model", "where"], [["tiny", long]])
    assert long in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ("report", ""), ("report", "runs", "--tables", ""), ("report", "runs", "--figures="), ("report", "runs", "--out", ""),
        ("pack", "", "--out", "x.zip"), ("needle", "--output-path", ""), ("needle", "--needle-file", ""), ("needle", "--tables="),
        ("train", "--out", ""), ("league", "--models-path", ""), ("models", ""), ("fading", "--figure", ""), ("needle", "--import", ""),
    ],
)  # fmt: skip
def test_an_empty_path_is_refused_and_is_not_the_current_folder(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"ssmax-eval: error: \S+ '': it is empty; give a path, or leave it out\n", err)
    assert not [*tmp_path.iterdir()]
