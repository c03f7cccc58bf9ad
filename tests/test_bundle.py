"""The bundled pairs: they open everywhere, are small, say where they come from, and do what the README shows."""

import json
import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import ssmax_eval
from ssmax_eval.models.catalogue import catalogue
from ssmax_eval.models.load import load_model
from ssmax_eval.models.sources import BUNDLED, PAIR, bundled_names

MODELS = {"softmax-2m": "softmax", "softmax-3m": "softmax", "ssmax-2m": "ssmax", "ssmax-3m": "ssmax"}
PAIRS = [("softmax-2m", "ssmax-2m"), ("softmax-3m", "ssmax-3m")]
MIB = 2**20


def test_what_is_bundled():
    assert bundled_names() == list(MODELS)
    assert PAIRS[0] == PAIR
    lines = {line[0]: line for line in catalogue()}
    for name, law in MODELS.items():
        _, attention, parameters, length, _, licence, where, training = lines[name]
        assert (attention, length, where) == (law, "256", "bundled")
        assert 1_900_000 < int(parameters.replace(",", "")) < 10_000_000
        assert licence
        assert re.fullmatch(r"\d\.\dM tokens in [\d,]+ s on cpu, [\d,]+/s", training)
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


@pytest.mark.parametrize("pair", PAIRS)
def test_the_two_differ_in_their_law_alone(pair):
    records = [json.loads((BUNDLED / name / "training.json").read_text()) for name in pair]
    jobs = [record["job"] | {"attention": None} for record in records]
    assert jobs[0] == jobs[1]
    tokenizers = [(BUNDLED / name / "tokenizer.json").read_bytes() for name in pair]
    assert tokenizers[0] == tokenizers[1]


@pytest.mark.parametrize("name", MODELS)
def test_auto_model_gives_the_same_logits(name):
    ids = torch.arange(20, 320)[None]
    ours, _ = load_model(name, dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(BUNDLED / name, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        if MODELS[name] == "ssmax":
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


@pytest.mark.slow
def test_the_larger_pair_fades_later_and_reads_values_nobody_listed(tmp_path):
    """Gap at 16 times the training length; made-up words at 4 times; of a UUID nearly every token."""
    grid = {"depth_percents": [0, 50, 100], "output_path": tmp_path}
    far = ssmax_eval.needle(list(PAIRS[1]), context_lengths=[4096], trials=5, **grid)
    found = far.groupby("model")["correct"].mean()
    assert found["ssmax-3m"] - found["softmax-3m"] >= 0.5
    words = ssmax_eval.needle("ssmax-3m", value="word", context_lengths=[1024], trials=10, **grid)
    assert words["correct"].mean() >= 0.8
    uuids = ssmax_eval.needle("ssmax-3m", value="uuid", context_lengths=[256], trials=10, **grid)
    assert (
        sum(rank == 0 for ranks in uuids["answer_ranks"] for rank in ranks) / uuids["answer_ranks"].map(len).sum() > 0.9
    )


def test_text_is_read_better_than_by_chance():
    model, tokenizer = load_model("ssmax-2m")
    ids = tokenizer(
        "The people of the town were glad, and the president of the United States said", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 0.8 * math.log(len(tokenizer))
