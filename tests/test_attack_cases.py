"""What a campaign of attacks found, each kind closed by its mechanism: one line and exit code 2, or a right number, and nothing left.

The campaign itself is tests/attack (`python -m tests.attack`).
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from test_cli import call
from torch import nn
from transformers import PreTrainedTokenizerBase

import ssmax_eval
from ssmax_eval import Mechanism, register
from ssmax_eval.data.own import OwnNeedle
from ssmax_eval.disk import is_full, json_in, json_of
from ssmax_eval.errors import UserError, reading
from ssmax_eval.mechanisms.registry import MECHANISMS, mechanisms
from ssmax_eval.mechanisms.spelling import told
from ssmax_eval.models import catalogue
from ssmax_eval.models.load import load_model
from ssmax_eval.models.sources import resolve
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.run import run_probes
from ssmax_eval.training.recipes import RANGES, SIZES, Recipe, recipe

ASKED = ("--context-lengths", "96", "--depth-percents", "0,100", "--trials", "1", "--no-report")
DEEP = "[" * 50_000 + "]" * 50_000


@pytest.fixture
def model(checkpoint, tmp_path, monkeypatch):
    """Return a checkpoint that a test may break, below a folder that it may fill."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(checkpoint, tmp_path / "models" / "m")


def changed(folder, name="config.json", **changes):
    """Change a JSON file of a folder; ... takes a key out."""
    told = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))
    return folder


def refused(capsys, says, *asked):
    """Run a command that has to end in one line with `says` in it; return the line."""
    code, out, err = call(capsys, *asked)
    line = err.splitlines()[-1]
    assert (code, out) == (2, "")
    assert line.startswith("ssmax-eval: error: ")
    assert says in line
    assert "Traceback" not in err
    return line


# foreign files


def reason_to_refuse(folder):
    """Return why a model is not read, all that is read of it; nothing if it is."""
    try:
        source = resolve(str(folder))
        source.training(), source.training_log(), source.fingerprint
        load_model(source)
    except UserError as error:
        return str(error)
    return ""


def test_json_is_read_in_one_place_that_knows_depth_and_pipes(tmp_path):
    with pytest.raises(ValueError, match="nested too deep"):
        json_of(DEEP)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no file"):
        json_in(tmp_path / "pipe")


def test_a_file_of_a_model_that_says_nothing_is_one_line_or_none(model, capsys):
    """And takes no other model of a list with it. None: a pipe, which would be waited for."""
    names = ["config.json", "training.json", "accuracy.json", "training_log.jsonl", "model.safetensors.index.json"]
    for name, wrong in itertools.product(names, [DEEP, "\ufeff{", "[]", "5", None]):
        broken = shutil.copytree(model, model.with_name(f"{name}-{str(wrong)[:2]}"))
        (broken / name).unlink(missing_ok=True)
        if wrong is None:
            os.mkfifo(broken / name)
        else:
            (broken / name).write_text(wrong)
        assert "\n" not in reason_to_refuse(broken)
    code, out, err = call(capsys, "models", "models", "--json")
    assert code == 0
    told = [each["path"] for each in json.loads(out)["models"] if each["found"] == "folder"]
    left_out = err.count("it is left out")
    assert "models/m" in told
    assert len(told) + left_out == 1 + 25 - 1  # a pipe is no config.json


def test_a_header_that_is_a_list(model, capsys):
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    refused(capsys, "model.safetensors is broken", "needle", "--model", model, *ASKED)
    code, _, err = call(capsys, "models", "models")
    assert code == 0
    assert "model.safetensors is broken" in err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_theta in its config is nan"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}}, "rope_theta in its config is inf"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "frequencies are not finite"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -5.0}}, "frequencies are not finite"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps in its config is nan"),
        ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10,000,000 in its config, and its files hold 21 tensors"),
        ({"num_hidden_layers": 60}, "they are not of one model"),
        ({"hidden_size": 2**20}, "the shapes of its weights are not those of its config"),
        (dict.fromkeys(["hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers"], ...), "the shapes of its weights"),
        ({"_attn_implementation_internal": "org/kernel"}, "attention implementation 'org/kernel', which is not registered"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_of_its_weights_takes_no_memory(model, capsys, monkeypatch, changes, says):
    def counted(*_, **__):
        pytest.fail("weights were loaded")

    if "frequencies" not in says:
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", counted)
    refused(capsys, says, "needle", "--model", changed(model, **changes), *ASKED)
    assert not os.path.exists("results")


def test_samples_nested_too_deep(tmp_path, capsys):
    (tmp_path / "samples_ssmax_needle_x.jsonl").write_text(DEEP + "\n")
    refused(capsys, "no rows.jsonl", "report", tmp_path)


NINE = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "it is no file"),
        (DEEP, "no YAML"),
        ("&a {<<: *a}", "more than 10,000 values"),
        (NINE + "runs: *a11\n", "more than 10,000 values"),
        ("seed: &a [*a]\nruns:\n- probe: needle\n", "more than 10,000 values"),
        (f"runs:\n- probe: needle\n  seed: {[*range(200)]}\n  trials: {[*range(1, 200)]}\n", "39,800 entries"),
        ("runs:\n- probe: needle\nseed: 2001-99-99\n", "no YAML"),
        ('output_path: "\\ud800"\nruns:\n- probe: needle\n', "line 1: text '\\ud800': it holds half a character"),
    ],
)
def test_a_sweep_that_grows_or_has_no_end(tmp_path, capsys, text, says):
    file = tmp_path / "sweep.yaml"
    os.mkfifo(file) if text is None else file.write_text(text)
    refused(capsys, says, "run", file, "--dry-run")


def test_names_that_are_no_text(model, tmp_path, capsys):
    """An argument, a file of a folder of text, and a value that a row would hold."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    for asked in (("needle", "--model", name), ("report", name), ("retrofit", "--model", model, "--out", name)):
        refused(capsys, "it is not UTF-8 text", *asked)
    os.makedirs("texts")
    with open(b"texts/\xfe.txt", "w") as file:
        file.write("It rains here. " * 500)
    for asked in (("needle", "--haystack", "texts"), ("loss", "--text", "texts", "--context-length", "64")):
        refused(capsys, "in it is not UTF-8 text", *asked, "--model", model)


def test_what_could_not_be_read_again_is_not_written(checkpoint, tmp_path, monkeypatch):
    right = NeedleProbe.row
    monkeypatch.setattr(NeedleProbe, "row", lambda *given: right(*given) | {"haystack": "half \udcff"})
    probe = NeedleProbe(context_lengths=(96,), depth_percents=(0,), trials=1)
    with pytest.raises(UserError, match="surrogate"):
        run_probes([probe], str(checkpoint), options=RunOptions(output_path=tmp_path))
    assert [file.read_bytes() for file in tmp_path.rglob("rows.jsonl")] in ([], [b""])


def test_a_folder_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    refused(capsys, "change into one that is there", "needle", *ASKED)


def test_a_long_path_is_a_short_line(capsys):
    line = refused(capsys, "File name too long", "needle", "--model", "x" * 5000, *ASKED)
    assert len(line) < 400


def test_an_output_that_is_where_one_stands(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(capsys, "output '.'", "retrofit", "--model", model, "--attention", "ssmax", "--out", ".")
    assert not list((tmp_path / "here").iterdir())


def test_a_folder_of_half_a_record(tmp_path, capsys):
    (tmp_path / "training.json.half").write_text("{}")
    refused(capsys, "it holds something else", "train", "--recipe", "smoke", "--out", tmp_path)


# ranges


def test_every_number_of_a_recipe_has_a_range():
    shares = {"short_share", "plain_share", "invented", "words", "uuids", "phrasings", "mask_share"}
    others = {"name", "blocks", "qk_norm", "position", "mixed_lengths", "schedule", "text", "task", "digits"}
    assert {each.name for each in fields(Recipe)} == {*SIZES, *RANGES} | shares | others
    for name in [*SIZES, *RANGES, *shares]:
        for value in ("1" + "0" * 30, "-1" + "0" * 30):
            text = value if name != "betas" else f"{value}:{value}"
            with pytest.raises(UserError, match=f"recipe {name}|must be a multiple"):
                recipe("smoke").changed({name: text})


@pytest.mark.parametrize(
    "field", [{"model_max_length": "x"}, {"model_max_length": [1]}, {"pad_token": 7}, {"add_bos_token": "x"}]
)
def test_what_a_tokenizers_config_says_is_tried_before_it_is_used(model, capsys, field):
    changed(model, "tokenizer_config.json", **field)
    code, _, err = call(capsys, "needle", "--model", model, *ASKED, "--dry-run")
    assert code == 0 or (
        code == 2 and err.splitlines()[-1].startswith(f"ssmax-eval: error: model {str(model)!r}: its tokenizer ")
    )
    if "model_max_length" in field:
        assert "its tokenizer cannot be used (TypeError: " in err


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_half_a_character_in_a_model_is_one_line(model, capsys, tmp_path, name):
    file = model / name
    told = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(told | {"bos_token": "\ud800"}))
    for command in (["retrofit", "--attention", "ssmax", "--out", "made"], ["needle", *ASKED]):
        refused(capsys, "it holds half a character (a surrogate)", *command, "--model", model)
    assert not (tmp_path / "made").exists()
    assert json_of('"\\ud83d\\ude00"') == "\U0001f600"
    for raw in (b'"\xed\xa0\x80"', '"\ud800"', '"\\ud800"'.encode("utf-16")):
        with pytest.raises(ValueError, match="half a character"):
            json_of(raw)


def test_a_tokenizer_that_cannot_be_saved_is_found_out_before_a_training(model, capsys, tmp_path, monkeypatch):
    def stumbles(*given, **named):
        raise TypeError("x")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", stumbles)
    smoke = ["--recipe", "smoke", "--set", "steps=6", "--set", "text_characters=20000"]
    refused(capsys, "cannot be used (TypeError: x", "train", "--start", model, *smoke, "--out", "made")
    refused(
        capsys, "cannot be used (TypeError: x", "retrofit", "--model", model, "--attention", "ssmax", "--out", "made"
    )
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", [{"a": 1}, ["llama"], 3, None])
def test_a_model_type_of_another_kind_is_one_line(model, capsys, kind):
    changed(model, "config.json", model_type=kind)
    code, _, err = call(capsys, "needle", "--model", model, *ASKED)
    assert (code, len(err.splitlines())) == (2, 1)


@pytest.mark.parametrize(
    "place",
    [
        "models.load.is_encoder",
        "models.load.attach",
        "models.load.refuse_more_layers",
        "models.subjects.mechanism_asked",
        "probes.by_model.train_length_of",
        "probes.by_model.config_of",
    ],
)
@pytest.mark.parametrize("kind", [TypeError("x"), KeyError("x"), AttributeError("x"), OverflowError("x")])
def test_whatever_we_stumble_over_in_a_model_is_one_line(model, capsys, monkeypatch, place, kind):
    def stumbles(*given, **named):
        raise kind

    monkeypatch.setattr(f"ssmax_eval.{place}", stumbles)
    asked = ["--trials", "1", "--dry-run"] if "by_model" in place else ASKED
    command = ["retrofit", "--attention", "ssmax", "--out", "made"] if "attach" in place else ["needle", *asked]
    line = refused(capsys, "it holds a value that cannot be used", *command, "--model", str(model))
    assert f"{type(kind).__name__}: " in line
    assert "read in ssmax_eval." in line


def test_a_model_that_we_stumble_over_takes_no_other_from_the_list(model, capsys, monkeypatch):
    licence = catalogue.card_licence
    monkeypatch.setattr(
        catalogue, "card_licence", lambda source: {}["x"] if source.path.name == "m" else licence(source)
    )
    code, out, err = call(capsys, "models", ".")
    assert code == 0
    assert "softmax-bible-2m" in out
    assert "KeyError: 'x'; read in ssmax_eval.models.catalogue, line " in err


def test_an_error_of_no_value_is_not_hidden():
    with pytest.raises(RuntimeError, match="^ours$"), reading("model 'x'"):
        raise RuntimeError("ours")
    with pytest.raises(UserError, match="^theirs$"), reading("model 'x'"):
        raise UserError("theirs")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"parameters": None}, 0),
        ({"architecture": None}, 0),
        ({"parameters": 10**30}, 2),
        ({"train_length": 10**30}, 2),
        ({"foreign": {"kind": [1]}}, 2),
    ],
)
def test_a_record_of_other_numbers_is_a_page_or_one_line(model, tmp_path, capsys, changes, code):
    call(capsys, "needle", "--model", model, *ASKED, "--output-path", "out")
    (file,) = (tmp_path / "out").rglob("run.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"model": record["model"] | changes}))
    got, _, err = call(capsys, "report", "out")
    assert got == code
    assert code == 0 or (
        err.splitlines()[-1].startswith("ssmax-eval: error: ") and "run.json cannot be read (model." in err
    )


@pytest.mark.slow  # compiles all that is imported, without docstrings
def test_docstrings_that_python_took_away_are_told_of(model):
    asked = [sys.executable, "-m", "ssmax_eval", "needle", "--model", str(model), *ASKED]
    done = subprocess.run(asked, env=os.environ | {"PYTHONOPTIMIZE": "2"}, capture_output=True, text=True)
    assert (
        done.returncode == 0
        or "PYTHONOPTIMIZE=2 takes the docstrings away that transformers reads; unset it" in done.stderr
    )


# foreign code


@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "Mine"])
def test_a_tokenizers_code_is_told_of_before_another_takes_its_place(model, capsys, named):
    changed(model, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "mine.Mine"]}, tokenizer_class=named)
    text = "from transformers import PreTrainedTokenizerFast\nclass Mine(PreTrainedTokenizerFast):\n    pass\n"
    (model / "mine.py").write_text(text)
    refused(capsys, "its tokenizer runs code of its own (mine.Mine)", "needle", "--model", model, *ASKED)
    code, _, err = call(capsys, "needle", "--model", model, *ASKED, "--trust-remote-code")
    assert code == 0, err
    changed(model, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "org/other--mine.Mine"]})
    asked = ("needle", "--model", model, *ASKED, "--trust-remote-code")
    refused(capsys, "its tokenizer's code lies in another repository", *asked)


# a user's own mechanism


@pytest.fixture(autouse=True)
def interruptible():
    """What a shell starts in the background ignores Ctrl-C: here it is heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def own():
    """Return what makes a mechanism of a test's own, whose name is free again afterwards."""
    before = mechanisms()  # all of ours: what is imported once would not come again

    def make(begins=None, **parts):
        def __init__(self, layer):
            Mechanism.__init__(self, layer)
            if begins is not None:
                begins(self, layer)

        weights = {"weights": lambda self, scores, seen: scores.softmax(-1)}
        return register(type("Own", (Mechanism,), {"name": "own", "__init__": __init__, **weights, **parts}))

    yield make
    MECHANISMS.clear()
    MECHANISMS.update(before)


def several(self, layer):
    self.t = nn.Parameter(torch.tensor(1.0))
    self.a = nn.Parameter(torch.ones(layer.heads, 3))
    self.b = nn.Parameter(torch.ones(0))
    self.inner = nn.Linear(2, 2)
    self.register_buffer("kept", torch.full((2,), 2.0))


def test_a_mechanism_of_any_parameters_works(own, checkpoint, tmp_path):
    """Of no axis, of several, of none, with a module and a buffer, without a docstring: attended, saved, opened alike."""
    own(several, weights=lambda self, scores, seen: (self.t * self.kept[0] * self.a[0, 0] * scores).softmax(-1))
    assert next(each for each in told() if each["mechanism"] == "own")["learned_numbers"] > 6
    model, _ = load_model(str(checkpoint), attention="own")
    ids = torch.arange(3, 60)[None]
    folder = ssmax_eval.retrofit(str(checkpoint), "own", tmp_path / "own")
    again, _ = load_model(str(folder))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


@pytest.mark.parametrize(
    ("begins", "says"),
    [
        (lambda self, layer: self.register_buffer("t", torch.ones(2), persistent=False), "its buffer t is not saved"),
        (lambda self, layer: setattr(self, "t", nn.Parameter(torch.full((2,), torch.nan))), "t is not finite at first"),
        (lambda self, layer: 1 / 0, "it cannot be made"),
    ],
)  # fmt: skip
def test_a_mechanism_that_could_not_come_back_is_refused(own, checkpoint, capsys, begins, says):
    own(begins)
    refused(capsys, says, "needle", "--model", checkpoint, "--attention", "own", *ASKED)
    code, out, err = call(capsys, "mechanisms", "--json")
    assert code == 0
    assert says in err
    assert "ssmax" in out


def test_a_mechanism_that_is_none_is_refused(own, checkpoint, capsys):
    for wrong in (print, nn.Linear, 5):
        with pytest.raises(UserError, match="derives from ssmax_eval.Mechanism"):
            register(wrong)
    own(__init__=lambda self, layer: None)
    refused(capsys, "super().__init__(layer)", "needle", "--model", checkpoint, "--attention", "own", *ASKED)


# stored runs


def test_rows_that_are_named_twice_count_once(checkpoint, tmp_path):
    rows = ssmax_eval.needle(str(checkpoint), context_lengths=[96], depth_percents=[0], trials=2, output_path=tmp_path)
    run = next(tmp_path.rglob("rows.jsonl")).parent
    for paths in ((tmp_path, tmp_path), (tmp_path, run), (run / "rows.jsonl", run), (run, f"{run}/../{run.name}")):
        assert len(ssmax_eval.load_results(*paths)) == len(rows) == 2


# weights that can be read only


class Packed(torch.Tensor):
    """As torchao keeps weights: a tensor of a class of its own."""


@pytest.mark.parametrize(
    "pack",
    [
        lambda weight: nn.Parameter(weight.data.to(torch.int8), requires_grad=False),  # as bitsandbytes keeps them
        lambda weight: nn.Parameter(weight.data.as_subclass(Packed), requires_grad=False),
    ],
)
def test_quantized_weights_are_read_and_nothing_else(checkpoint, tmp_path, capsys, monkeypatch, pack):
    def load(*arguments, **options):
        model, tokenizer = load_model(*arguments, **options)
        model.lm_head.weight = pack(model.lm_head.weight)
        return model, tokenizer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssmax_eval.models.retrofit.load_model", load)
    monkeypatch.setattr("ssmax_eval.training.train.load_model", load)
    asked = ("--attention", "ssmax", "--out", tmp_path / "out")
    refused(capsys, "its weights are quantized", "retrofit", "--model", checkpoint, *asked)
    refused(capsys, "its weights are quantized", "train", "--recipe", "smoke", "--start", checkpoint, *asked)
    assert not list(tmp_path.iterdir())


def test_an_interruption_while_all_is_imported_is_one_line(monkeypatch, capsys):
    import builtins

    from ssmax_eval import __main__

    right = builtins.__import__

    def interrupted(name, *given):
        if name == "cli":
            raise KeyboardInterrupt
        return right(name, *given)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert (stop.value.code, capsys.readouterr().err) == (130, "ssmax-eval: interrupted\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_that_a_destructor_drops_is_not_lost(capsys, monkeypatch, number, code):
    class Dropped:
        def __del__(self):
            signal.raise_signal(number)

    def command(*_, **__):
        Dropped()
        time.sleep(2)
        raise AssertionError("it went on")

    monkeypatch.setattr("ssmax_eval.terminal.print_table", command)
    found, _, err = call(capsys, "recipes")
    assert (found, err) == (code, "ssmax-eval: interrupted\n")


def test_an_interruption_while_options_are_read_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.main.get_command", interrupted)
    code, _, err = call(capsys, "recipes")
    assert (code, err) == (130, "ssmax-eval: interrupted\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("made", [SystemError, UserError, OSError])
def test_an_interruption_of_which_a_library_makes_an_error_is_one_all_the_same(capsys, monkeypatch, number, code, made):
    def command(*_, **__):
        try:
            signal.raise_signal(number)
            time.sleep(2)
        except BaseException as error:
            raise made("a result with an exception set") from error

    monkeypatch.setattr("ssmax_eval.terminal.print_table", command)
    found, _, err = call(capsys, "recipes")
    assert (found, err) == (code, "ssmax-eval: interrupted\n")


def test_a_stream_that_is_closed_keeps_its_number(tmp_path):
    """Else rows would be stored under the number to which libraries print."""
    from ssmax_eval.cli import occupy

    if (child := os.fork()) == 0:
        for number in range(3):
            os.close(number)
        occupy()
        os._exit(os.open(tmp_path / "rows", os.O_CREAT))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) > 2


def test_code_that_ends_the_process_is_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for ends, said in (
        ("import sys; sys.exit(3)", "SystemExit(3)"),
        ("raise BaseException('x')", "BaseException('x')"),
    ):
        for text in (ends, f"def answer(context, question):\n    {ends}"):
            (tmp_path / "mine.py").write_text(f"{text}\n")
            says = f"code that was run ended the process ({said})"
            refused(capsys, says, "needle", "--model", "mine.py:answer", *ASKED)


def test_what_a_training_that_is_done_left_is_taken_away(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ("--set", "steps=2", "--set", "text_characters=20000", "--set", "vocabulary=300")
    asked = ("train", "--recipe", "smoke", *small, "--out", "out")
    assert call(capsys, *asked)[0] == 0
    os.makedirs("out/checkpoints/checkpoint-2")  # killed when all else was done
    assert call(capsys, *asked)[0] == 0
    assert not os.path.exists("out/checkpoints")


def test_half_a_character_in_a_needle_or_a_chat(model, tmp_path, capsys):
    """What YAML and JSON can write and no tokenizer takes."""
    (tmp_path / "n.yaml").write_text('needle: "\\ud800 {key} is {value}"\nquestion: "What is {key}?"\n')
    refused(capsys, "holds half a character", "needle", "--model", model, "--needle-file", tmp_path / "n.yaml")
    (tmp_path / "t.jinja").write_text('{{ "\\ud800" }}{{ messages[-1].content }}')
    refused(capsys, "chat template: text", "needle", "--model", model, "--chat-template", tmp_path / "t.jinja")
    with pytest.raises(UserError, match="half a character"):
        OwnNeedle("own", ("{key} is \ud800{value}",), ("What is {key}? {key} is",), "{value}")


def test_an_error_that_comes_from_itself_ends(capsys, monkeypatch):
    """Foreign code can make a circle of causes: looking for an interruption or a full disk in it ends."""

    def command(*_, **__):
        error = UserError("round and round")
        raise error from error

    monkeypatch.setattr("ssmax_eval.terminal.print_table", command)
    assert call(capsys, "recipes")[0] == 2
    one, other = OSError("a"), OSError("b")
    one.__cause__, other.__cause__ = other, one
    assert not is_full(one)


def test_a_library_that_cannot_be_imported_is_named(tmp_path):
    """An environment variable that torch refuses, as any library may refuse one."""
    found = subprocess.run(
        [sys.executable, "-m", "ssmax_eval", "recipes"],
        env=os.environ | {"TORCH_LOGS": "x", "PYTHONPATH": str(Path(ssmax_eval.__file__).parents[1])},
        stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.startswith(
        "ssmax-eval: error: library torch: it cannot be imported here (ValueError: Invalid log"
    )
    assert len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "command", "less"),
    [
        (MemoryError(), "recipes", "less at a time"),
        (OSError(12, "Cannot allocate memory"), "recipes", "less at a time"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "needle",
            "shorter contexts, --dtype bfloat16",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "train",
            "fewer tokens (--set tokens_per_step=N)",
        ),
    ],
)
def test_no_memory_left_is_one_line(capsys, monkeypatch, tmp_path, error, command, less):
    """Wherever it runs out; a line that says what to take less of, and no advice about the environment."""
    monkeypatch.chdir(tmp_path)
    if command == "train":
        monkeypatch.setattr("ssmax_eval.training.train.WeightedTrainer", Mock(side_effect=error))
        asked = ("train", "--recipe", "smoke", "--attention", "softmax", "--out", "out", "--device", "cpu")
    elif command == "needle":
        monkeypatch.setattr("ssmax_eval.run.run_probes", Mock(side_effect=error))
        asked = (command,)
    else:
        monkeypatch.setattr("ssmax_eval.terminal.print_table", Mock(side_effect=error))
        asked = (command,)
    code, _, err = call(capsys, *asked)
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"ssmax-eval: error: memory: it does not suffice ({type(error).__name__}")
    assert f"take {less}" in line
    assert "Traceback" not in err
