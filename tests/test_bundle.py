"""The bundled pairs: they open everywhere, are small, say where they come from, and do what the README shows."""

import json
import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

import ssmax_eval
from ssmax_eval.errors import UserError
from ssmax_eval.models.catalogue import catalogue, table_line
from ssmax_eval.models.load import load_model
from ssmax_eval.models.sources import BUNDLED, PAIR, bundled_names, resolve

MODELS = {"softmax-bible-2m": "softmax", "ssmax-bible-2m": "ssmax"}
OLD = {
    f"{mechanism}-{size}": mechanism for size in ("2m", "3m") for mechanism in ("softmax", "ssmax")
}  # on texts that are not free
MIB = 2**20


def test_what_is_bundled():
    assert bundled_names() == list(MODELS)
    assert tuple(MODELS) == PAIR
    models = {each["model"]: each for each in catalogue()}
    for name, mechanism in MODELS.items():
        told = models[name]
        known = {
            "attention": mechanism,
            "train_length": 256,
            "found": "bundled",
            "licence": "cc0-1.0",
            "needles_found": 1.0,
        }
        assert {key: told[key] for key in known} == known
        assert 1_900_000 < told["parameters"] < 10_000_000
        assert (BUNDLED / name).samefile(told["path"])
        _, attention, parameters, length, found, _, licence, where, training = table_line(told)
        assert (attention, length, where, licence) == (mechanism, "256", "bundled", "cc0-1.0")
        assert re.fullmatch(r"(1?\.\d\d ){4}1?\.\d\d at 1x to 16x", found)
        assert parameters == f"{told['parameters']:,}"
        assert re.fullmatch(r"\d\.\dM tokens in [\d,]+ s on cpu, [\d,]+/s, \d+% of its matmul rate", training)
        card = (BUNDLED / name / "README.md").read_text()
        assert all(word in card for word in ("World English Bible (public domain)", "seed", "Limits"))


def test_sizes_and_kinds_of_files():
    # an installer compiles the one .py file
    files = [file for file in BUNDLED.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) < 80 * MIB
    assert all(file.stat().st_size < 15 * MIB for file in files)
    assert {file.suffix for file in files} <= {".json", ".jsonl", ".md", ".safetensors", ".svg", ".py", ".jinja"}
    assert not any(
        "/work" in file.read_text() or "/tmp" in file.read_text() for file in files if file.suffix in (".json", ".md")
    )


def test_the_two_differ_in_their_mechanism_alone():
    records = [json.loads((BUNDLED / name / "training.json").read_text()) for name in PAIR]
    jobs = [record["job"] | {"attention": None} for record in records]
    assert jobs[0] == jobs[1]
    tokenizers = [(BUNDLED / name / "tokenizer.json").read_bytes() for name in PAIR]
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
    assert found["ssmax-bible-2m"] - found["softmax-bible-2m"] >= 0.5


def test_the_study_set_opens_by_name():
    """Its seed 0 is the bundled pair; the first pairs, whose texts leave no plain licence, are there and not in the package."""
    for mechanism in ("softmax", "ssmax"):
        assert resolve(f"study/cpu-{mechanism}-s0").fingerprint == resolve(f"{mechanism}-bible-2m").fingerprint
    models = {each["model"]: each for each in catalogue()}
    assert len([name for name in models if name.startswith("study/cpu-")]) == 14
    for name, mechanism in OLD.items():
        assert models[f"study/{name}"]["attention"] == mechanism
        assert models[f"study/{name}"]["licence"] == "other"
        card = resolve(f"study/{name}").path / "README.md"
        assert all(word in card.read_text() for word in ("CC BY-SA 4.0", "GPL", "not in the package"))
    with pytest.raises(UserError, match="study/nothing.*no such model of the study set; allowed are study/cpu-"):
        resolve("study/nothing")


@pytest.mark.slow
def test_the_larger_pair_fades_later_and_reads_values_nobody_listed(tmp_path):
    """Gap at 16 times the training length; made-up words at 4 times; of a UUID nearly every token. Plan 1's prompts, as published."""
    grid = {"depth_percents": [0, 50, 100], "output_path": tmp_path, "plan": 1}
    far = ssmax_eval.needle(["study/softmax-3m", "study/ssmax-3m"], context_lengths=[4096], trials=5, **grid)
    found = far.groupby("model")["correct"].mean()
    assert found["ssmax-3m"] - found["softmax-3m"] >= 0.5
    words = ssmax_eval.needle("study/ssmax-3m", value="word", context_lengths=[1024], trials=10, **grid)
    assert words["correct"].mean() >= 0.8
    uuids = ssmax_eval.needle("study/ssmax-3m", value="uuid", context_lengths=[256], trials=10, **grid)
    assert (
        sum(rank == 0 for ranks in uuids["answer_ranks"] for rank in ranks) / uuids["answer_ranks"].map(len).sum() > 0.9
    )


def test_text_is_read_better_than_by_chance():
    model, tokenizer = load_model("ssmax-bible-2m")
    ids = tokenizer(
        "And the people of the city were glad, and he said to them, I will give you the land", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 0.8 * math.log(len(tokenizer))
