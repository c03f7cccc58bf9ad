"""Defaults: lengths past the training length from what a config tells, and the same on the command line, in Python and in lm-eval."""

import inspect
import json
import pydoc
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import build, tokens
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

import ssmax_eval
from ssmax_eval import api
from ssmax_eval.commands import probing
from ssmax_eval.data.needles import Needle
from ssmax_eval.models.sources import PAIR
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.position.learned import position_end
from ssmax_eval.probes import PROBES
from ssmax_eval.probes.by_model import default_lengths, default_window, training_length
from ssmax_eval.probes.defaults import UNKNOWN
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.probes.options import options_of
from ssmax_eval.statistics import Thresholds

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
GPT2 = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4}


def folder(tmp_path, name="m", **config):
    """Return a directory that holds a config.json and no weights: nothing of a default may need them."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES, **config}))
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("train_length", "lengths"),
    [
        (128, (128, 256, 512, 1024, 2048)),
        (256, (256, 512, 1024, 2048, 4096)),
        (511, (511, 1022, 2044, 4088, 8176)),
        (512, (256, 512, 1024, 2048, 4096)),
        (1025, (512, 1024, 2048, 4096, 8192)),
        (8192, (4096, 8192, 16384, 32768, 65536)),
        (131072, (65536, 131072, 262144, 524288, 1048576)),
        (10485760, (5242880, 10485760, 20971520, 41943040, 83886080)),
    ],
)
def test_lengths_go_past_the_training_length(tmp_path, train_length, lengths):
    model = folder(tmp_path, max_position_embeddings=train_length)
    assert default_lengths(model) == lengths
    assert lengths[0] <= train_length
    assert sum(length > train_length for length in lengths) >= 2
    assert default_lengths({"any label": model}) == lengths
    assert default_window([model]) == min(256, train_length)


@pytest.mark.parametrize(
    ("positions", "lengths"),
    [(8192, (512, 1024, 2048, 4096, 8192)), (2048, (256, 512, 1024, 2048)), (1024, (256, 512, 1024)), (128, (128,))],
)
def test_lengths_end_where_learned_positions_end(tmp_path, positions, lengths):
    model = folder(tmp_path, **GPT2, n_positions=positions)
    assert default_lengths(model) == lengths


def test_several_models_have_one_grid(tmp_path, caplog):
    short = folder(tmp_path, "short", max_position_embeddings=512)
    long = folder(tmp_path, "long", max_position_embeddings=4096)
    learned = folder(tmp_path, "learned", **GPT2, n_positions=2048)
    assert default_lengths([long, long]) == (2048, 4096, 8192, 16384, 32768)
    assert not caplog.text
    assert default_lengths([short, long]) == default_lengths(long)
    assert "training lengths differ (short 512, long 4,096)" in caplog.text
    assert default_lengths([short, learned, long]) == default_lengths(learned)
    assert default_window([short, long]) == 256


def test_a_length_that_the_config_leaves_out_is_its_class_s(tmp_path):
    """What transformers gives the loaded model, and so what log-n takes for L, is what defaults and advice go by."""
    mute = folder(tmp_path)
    longest = AutoConfig.from_pretrained(mute).max_position_embeddings
    assert training_length(mute) == longest
    assert longest in default_lengths(mute)


@pytest.mark.parametrize("length", [None, 0, -1, "512", 10**30])
def test_an_unknown_training_length_is_said(tmp_path, caplog, length):
    mute = folder(tmp_path, "mute", model_type="mamba", max_position_embeddings=length)
    known = folder(tmp_path, "known", max_position_embeddings=4096)
    assert default_lengths(mute) == UNKNOWN == (512, 1024, 2048, 4096, 8192)
    assert "training length of mute: not told; context lengths are 512 to 8192 tokens" in caplog.text
    assert default_lengths([mute, known]) == default_lengths(known)
    assert "training length of mute: not told; context lengths are the others'" in caplog.text


@pytest.mark.parametrize(
    "name", ["GPT2", "OPT", "GPTBigCode", "BioGpt", "GPTNeo", "Llama", "GPTNeoX", "Bloom", "Jamba"]
)
def test_positions_end_where_the_model_fails(name):
    """The unmodified model reads up to its end and not one token more; without an end, it reads on."""
    at = {"GPTNeo": {"attention_types": [[["global"], 2]], "num_layers": 2, "num_heads": 4}}
    mamba = {
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "mamba_dt_rank": 4,
    }
    changes = at | {"Jamba": mamba, "Bloom": {"hidden_size": 32, "n_head": 4}}
    model = build(name, max_position_embeddings=48, num_hidden_layers=2, **changes.get(name, {}))
    end = position_end(model)
    assert end == (None if name in ("Llama", "GPTNeoX", "Bloom", "Jamba") else 48)
    with torch.no_grad():
        model(tokens(1, 48))
        if end is None:
            model(tokens(1, 80))
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(tokens(1, 49))


COUNTED_AFTER_PADDING = {"max_position_embeddings": 48, "pad_token_id": 1}
ENDS = {
    "Roberta": COUNTED_AFTER_PADDING,
    "XLMRobertaXL": COUNTED_AFTER_PADDING,
    "IBert": COUNTED_AFTER_PADDING,
    "MPNet": COUNTED_AFTER_PADDING,
    "Longformer": {**COUNTED_AFTER_PADDING, "attention_window": [16, 16]},
    "Bert": {"max_position_embeddings": 48},
    "Mpt": {"max_seq_len": 48, "d_model": 32, "n_heads": 4, "n_layers": 2},
    "Reformer": {
        "max_position_embeddings": 48,
        "axial_pos_shape": (6, 8),
        "axial_pos_embds_dim": (16, 16),
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 8,
        "attention_head_size": 8,
        "is_decoder": True,
    },
    "Whisper": {"max_target_positions": 48, "decoder_layers": 2, "decoder_attention_heads": 4, "pad_token_id": 0},
}


@pytest.mark.parametrize("name", ENDS)
def test_positions_end_where_the_model_fails_whatever_ends_them(name):
    """A table that is counted from after its row for padding, a bias made for so many tokens, a length that code holds to."""
    sizes = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(**{**sizes, "intermediate_size": 48, **ENDS[name]})
    decoder = name in ("Mpt", "Reformer", "Whisper")
    model = (AutoModelForCausalLM if decoder else AutoModelForMaskedLM).from_config(config).eval()
    end = position_end(model)
    assert end == (46 if ENDS[name].get("pad_token_id") == 1 else 48)
    assert default_lengths((model, None)) == (end,)
    with torch.no_grad():
        model(input_ids=tokens(1, end))
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            model(input_ids=tokens(1, end + 1))


def gguf_file(path, architecture="llama", table="token_embd.weight", **lengths):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in lengths.items():
        writer.add_uint32(f"{architecture}.{key.replace('__', '.')}", value)
    writer.add_tensor(table, np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_a_gguf_file_tells_its_training_length(tmp_path):
    assert default_lengths(gguf_file(tmp_path / "a.gguf", context_length=8192))[-1] == 65536
    scaled = {"context_length": 8192, "rope__scaling__original_context_length": 2048}
    assert default_lengths(gguf_file(tmp_path / "b.gguf", **scaled))[-1] == 16384
    learned = gguf_file(tmp_path / "c.gguf", "gpt2", "position_embd.weight", context_length=1024)
    assert default_lengths(learned) == (256, 512, 1024)
    assert default_lengths(gguf_file(tmp_path / "d.gguf")) == UNKNOWN


def of_command(name, *models):
    """Return the probe that a command makes when it is told nothing but its models."""
    command, kind = probing.command("", [PROBES[name]]), PROBES[name]
    given = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    read = {each.name: probing.value(each, given[each.name]) for each in options_of(kind.options)}
    return kind.make(list(models), kind.options(**read))


def needle_probe(models, **given):
    return PROBES["needle"].make(models, PROBES["needle"].options(**given))


def loss_probe(models, **given):
    return PROBES["loss"].make(models, PROBES["loss"].options(**given))


def test_the_command_line_python_and_lm_eval_take_the_same(checkpoint, tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    for models in (
        str(checkpoint),
        [str(checkpoint)],
        {"a": str(checkpoint)},
        (model, tokenizer),
        {"b": (model, tokenizer)},
    ):
        assert needle_probe(models) == of_command("needle", str(checkpoint))
        assert loss_probe(models) == of_command("loss", str(checkpoint))
    grid = needle_probe(str(checkpoint))
    assert grid.context_lengths == (256, 512, 1024, 2048, 4096)
    assert loss_probe(str(checkpoint)).context_length == 4096
    pytest.importorskip("lm_eval")
    from ssmax_eval.harness.documents import loss_documents, needle_prompts

    built = needle_prompts(pretrained=str(checkpoint), limit_tokens=50_000)["parameters"]
    wanted = needle_probe(str(checkpoint), limit_tokens=50_000).parameters()
    assert {key: built[key] for key in wanted} == wanted
    texts = loss_documents(pretrained=str(checkpoint), documents=1)["parameters"]
    assert (texts["context_lengths"], texts["window"]) == (list(grid.context_lengths), 128)


def test_python_functions_take_the_models_defaults(checkpoint, tmp_path):
    """Also with a loaded pair, whose config alone tells the length."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    plan = api.needle((model, api_tokenizer(checkpoint)), trials=1, dry_run=True, output_path=tmp_path)
    assert list(plan["context_length"]) == [256, 512, 1024, 2048, 4096]
    assert list(api.attention(str(checkpoint), dry_run=True)["context_length"]) == [256, 512, 1024, 2048, 4096]
    assert list(api.loss(str(checkpoint), dry_run=True)["context_length"]) == [4096]
    assert not list(tmp_path.iterdir())


def api_tokenizer(checkpoint):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("name", "probe", "own", "hers"),
    [
        ("needle", NeedleProbe, {"attended", "blow_up"}, {"needle", "plan_version", "chat"}),
        (
            "attention",
            NeedleProbe,
            {"attended", "blow_up"},
            {"needle", "plan_version", "chat", "scoring", "attention_mass"},
        ),
        ("loss", LossProbe, set(), set()),
    ],
)
def test_options_parameters_and_fields_agree(name, probe, own, hers):
    """In name and in default: what a command has and Python has not is how it prints, and what Python imports itself."""
    known = {each.name: each for each in options_of(PROBES[name].options)}
    command = probing.command("", [PROBES[name]])
    options = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    parameters = {name: p.default for name, p in inspect.signature(getattr(api, name)).parameters.items()}
    assert set(options) - set(parameters) == {"model", "report", "tables", "json", "imports", *own}
    assert set(parameters) - set(options) == {"models"}
    both = set(parameters) - {"models"}
    assert {name: probing.value(known[name], options[name]) for name in both} == {
        name: parameters[name] for name in both
    }
    of_models = {"context_lengths", "context_length", "window"}
    known = {field.name: field.default for field in fields(probe) if field.name not in hers}
    assert set(known) <= set(parameters)
    assert {name: parameters[name] for name in known.keys() - of_models} == {
        name: known[name] for name in known.keys() - of_models
    }
    assert all(parameters[name] is None for name in known.keys() & of_models)


def test_other_defaults_agree_too():
    needle = inspect.signature(probing.command("", [PROBES["needle"]])).parameters
    for kind, names in ((Needle, ("value", "needles")), (Thresholds, ("attended", "blow_up"))):
        assert [needle[name].default for name in names] == [getattr(kind, name) for name in names]
    names = ("dtype", "device", "output_path", "fresh", "trust_remote_code")
    assert [needle[name].default for name in names] == [getattr(RunOptions, name) for name in names]
    assert (NeedleProbe().context_lengths, LossProbe().context_length) == (UNKNOWN, UNKNOWN[-1])


def test_python_shows_every_option_and_names_the_nearest(checkpoint):
    """In the signature, in the help, and where a word is nearly right."""
    for kind in PROBES.values():
        function = getattr(ssmax_eval, kind.function)
        told = pydoc.plain(pydoc.render_doc(function))
        for each in options_of(kind.options):
            assert f"{each.name}:" in told
            assert " ".join(each.told.help.split()) in " ".join(told.split())
    with pytest.raises(TypeError, match="'trails'; did you mean trials"):
        ssmax_eval.needle(str(checkpoint), trails=3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"trials": "3"}, "trials '3': allowed is a whole number"),
        ({"trials": 2.0}, "trials 2.0"),
        ({"seed": True}, "seed True"),
        ({"context_lengths": 96}, "context lengths 96: allowed is several whole numbers or None"),
        ({"context_lengths": [96.5]}, r"context lengths \[96.5\]"),
        ({"depth_percents": "50"}, "depth percents '50'"),
        ({"rope_theta_factor": "2"}, "a number or several numbers"),
        ({"output_path": 3}, "output path 3"),
        ({"chunk": "auto"}, "chunk 'auto'"),
        ({"task": ""}, "task '': an empty text says nothing"),
        ({"controls": ["no-needle", ""]}, "controls .*: an empty text"),
        ({"needles": -1}, "needles -1: allowed are 2 to"),
    ],
)
def test_values_of_another_type_are_one_line(checkpoint, given, says):
    with pytest.raises(ssmax_eval.UserError, match=says):
        ssmax_eval.needle(str(checkpoint), **given)


def test_numpys_values_are_pythons():
    options = PROBES["needle"].options
    same = options(
        context_lengths=np.array([96, 128]),
        trials=np.int64(2),
        rope_theta_factor=np.float64(2),
        depth_percents=range(2),
    )
    assert same == options(context_lengths=[96, 128], trials=2, rope_theta_factor=2.0, depth_percents=(0, 1))


def test_the_tasks_readme_tells_the_defaults():
    text = (Path(__file__).parent.parent / "tasks" / "README.md").read_text()
    assert f"0, 25, 50, 75, 100; {NeedleProbe.trials}; {NeedleProbe.seed}" in text
    assert "`limit_tokens`" in text


def test_the_bundled_pair_keeps_its_grid():
    assert default_lengths(list(PAIR)) == (256, 512, 1024, 2048, 4096)
