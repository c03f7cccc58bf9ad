"""A model spread by a device map gives the rows of the model in one place: other settings, masses and learned values too."""

import pandas as pd
import pytest
import torch
from test_cli import call
from tiny import build, tokens

import ssmax_eval
from ssmax_eval import UserError, attach, load_model, save_model
from ssmax_eval.mechanisms.attach import learned_of
from ssmax_eval.mechanisms.layers import reads_on

# half of it in memory, half on the disk: what accelerate does where no device holds all
SPREAD = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
GRID = {"context_lengths": [128], "depth_percents": [0, 100], "trials": 1}


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    attach(model, "ssmax:s=0.3")
    return save_model(model, tokenizer, tmp_path_factory.mktemp("spread"))


def test_a_spread_model_gives_the_same_rows(folder, tokenizer, tmp_path):
    whole, _ = load_model(str(folder))
    spread, _ = load_model(str(folder), device_map=SPREAD)
    assert spread.device.type == "meta"
    assert reads_on(spread).type == "cpu"
    with torch.no_grad():
        assert torch.equal(spread(tokens()).logits, whole(tokens()).logits)
    assert learned_of(spread) == learned_of(whole)
    asked = {**GRID, "attention": [None, "softmax1", "ssmax"], "rope_theta_factor": 4}
    found = [
        ssmax_eval.needle((model, tokenizer), **asked, attention_mass=mass, output_path=tmp_path / f"{name}{mass}")
        for mass in (False, True)
        for name, model in (("whole", whole), ("spread", spread))
    ]
    for one, other in zip(found[::2], found[1::2], strict=True):
        named = ["run_id", "fingerprint"]  # of a model in memory they tell where it is
        pd.testing.assert_frame_equal(one.drop(columns=named), other.drop(columns=named))


def test_the_command_line_takes_auto(folder, capsys, tmp_path):
    asked = (
        "needle",
        "--model",
        folder,
        "--context-lengths",
        "128",
        "--depth-percents",
        "0,100",
        "--trials",
        "1",
        "--no-report",
    )
    for name, options in (("map", ("--device-map", "auto")), ("plain", ())):
        assert call(capsys, *asked, *options, "--output-path", tmp_path / name)[0] == 0
    pd.testing.assert_frame_equal(
        ssmax_eval.load_results(tmp_path / "map"), ssmax_eval.load_results(tmp_path / "plain")
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device_map": "sequential"}, "device map 'sequential': allowed is auto"),
        ({"device_map": "auto", "device": "cpu"}, "device 'cpu' with a device map"),
    ],
)
def test_what_a_map_cannot_be_is_one_line(folder, options, says):
    with pytest.raises(UserError, match=says):
        load_model(str(folder), **options)
