"""The bundled pair: it opens everywhere, is small, says where it comes from, and does what the README shows."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import ssmax_eval
from ssmax_eval.models.catalogue import catalogue
from ssmax_eval.models.load import load_model
from ssmax_eval.models.sources import BUNDLED, bundled_names

PAIR = {"softmax-2m": "softmax", "ssmax-2m": "ssmax"}
MIB = 2**20


def test_what_is_bundled():
    assert bundled_names() == list(PAIR)
    lines = {line[0]: line for line in catalogue()}
    for name, law in PAIR.items():
        _, attention, parameters, length, _, licence, where = lines[name]
        assert (attention, length, where) == (law, "256", "bundled")
        assert 1_900_000 < int(parameters.replace(",", "")) < 10_000_000
        assert licence
        card = (BUNDLED / name / "README.md").read_text()
        assert all(word in card for word in ("CC BY-SA 4.0", "GPL", "public domain", "seed", "Limits"))


def test_sizes_and_kinds_of_files():
    # an installer compiles the one .py file
    files = [file for file in BUNDLED.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) < 80 * MIB
    assert all(file.stat().st_size < 15 * MIB for file in files)
    assert {file.suffix for file in files} <= {".json", ".jsonl", ".md", ".safetensors", ".svg", ".py", ".jinja"}
    assert not any(
        "/work" in file.read_text() or "/tmp" in file.read_text() for file in files if file.suffix in (".json", ".md")
    )


def test_the_two_differ_in_their_law_alone():
    records = [json.loads((BUNDLED / name / "training.json").read_text()) for name in PAIR]
    jobs = [record["job"] | {"attention": None} for record in records]
    assert jobs[0] == jobs[1]
    tokenizers = [(BUNDLED / name / "tokenizer.json").read_bytes() for name in PAIR]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize("name", PAIR)
def test_auto_model_gives_the_same_logits(name):
    ids = torch.arange(20, 320)[None]
    ours, _ = load_model(name, dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(BUNDLED / name, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        if PAIR[name] == "ssmax":
            assert torch.equal(ours(ids).logits, theirs.eval()(ids).logits)
        else:
            torch.testing.assert_close(ours(ids).logits, theirs.eval()(ids).logits, rtol=0, atol=1e-4)


def test_the_needle_at_the_training_length_and_far_beyond(tmp_path):
    grid = {"depth_percents": [0, 50, 100], "output_path": tmp_path}
    near = ssmax_eval.needle(list(PAIR), context_lengths=[256], trials=20, **grid)
    assert near.groupby("model")["correct"].mean().min() >= 0.95
    far = ssmax_eval.needle(list(PAIR), context_lengths=[2048], trials=4, **grid)
    found = far.groupby("model")["correct"].mean()
    assert found["ssmax-2m"] - found["softmax-2m"] >= 0.5


def test_text_is_read_better_than_by_chance():
    model, tokenizer = load_model("ssmax-2m")
    ids = tokenizer(
        "The people of the town were glad, and the president of the United States said", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 0.8 * math.log(len(tokenizer))
