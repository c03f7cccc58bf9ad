"""A model that was trained further says the length of its last training, everywhere, and computes what it learned."""

import copy
import json

import pytest
import torch
from test_training import TINY
from tiny import build, needed_by, tokens

from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach, learned_of, mechanisms_of
from ssmax_eval.mechanisms.registry import MECHANISMS, mechanisms, register
from ssmax_eval.mechanisms.scales import QueryScale, mean_log_n
from ssmax_eval.mechanisms.train_length import train_length_of
from ssmax_eval.models.catalogue import catalogue
from ssmax_eval.models.checkpoint import save_model
from ssmax_eval.models.load import load_model
from ssmax_eval.probes.by_model import default_lengths
from ssmax_eval.training.card import write_card
from ssmax_eval.training.folder import read_record
from ssmax_eval.training.job import Job
from ssmax_eval.training.length import continue_at
from ssmax_eval.training.recipes import recipe
from ssmax_eval.training.train import train


def logits_of(model, length=40):
    with torch.no_grad():
        return model(tokens(1, length)).logits


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("start", "mechanism"), [(128, None), (32, "ssmax")])
def test_a_training_that_goes_on_says_its_own_length(tmp_path, tokenizer, mechanism, start):
    model = build("Llama", vocab_size=1024, max_position_embeddings=start)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = start
    attach(model, mechanism or "softmax")
    save_model(model, tokenizer, tmp_path / "start")
    job = Job(recipe("cpu").changed(TINY | {"steps": "2"}), start=str(tmp_path / "start"))
    folder = train(job, tmp_path / "further", "cpu")
    write_card(folder)
    config = config_of(folder)
    assert config["max_position_embeddings"] == 64
    assert config.get("ssmax") == (None if mechanism is None else {"attention": "ssmax", "train_length": 64})
    assert train_length_of(config) == 64
    assert read_record(folder)["job"]["recipe"]["train_length"] == 64
    assert "| train length | 64 tokens" in (folder / "README.md").read_text()
    assert next(each["train_length"] for each in catalogue([tmp_path]) if each["model"] == str(folder)) == 64
    build("Llama", vocab_size=1024, max_position_embeddings=64).save_pretrained(tmp_path / "like")
    assert default_lengths([str(folder)]) == default_lengths([str(tmp_path / "like")])
    model, tokenizer = load_model(str(folder))
    assert tokenizer.model_max_length == train_length_of(model.config) == 64
    assert {each.layer.train_length for each in mechanisms_of(model).values()} == ({64} if mechanism else set())
    # and once more, elsewhere
    again = train(Job(job.recipe.changed({"train_length": "128"}), start=str(folder)), tmp_path / "again", "cpu")
    assert train_length_of(config_of(again)) == 128


@pytest.mark.parametrize("length", [64, 512])
@pytest.mark.parametrize("mechanism", [*mechanisms(), "learned-p:train_length=32", "grok:train_length=32"])
def test_a_mechanism_that_is_kept_has_the_new_length_and_what_it_learned(tmp_path, tokenizer, mechanism, length):
    if mechanism == "learned-p" and length < 256:
        pytest.skip("refused below")
    model = build("Llama", vocab_size=1024, **needed_by(mechanism))
    attach(model, mechanism)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in mechanisms_of(model).values():
            for parameter in each.parameters():
                parameter += 0.3 * torch.rand(parameter.shape, generator=generator)
    n = torch.arange(1.0, 700)[None, None]
    scales = {name: each for name, each in mechanisms_of(model).items() if isinstance(each, QueryScale)}
    before, learned = {name: each(n) for name, each in scales.items()}, learned_of(model)
    continue_at(model, tokenizer, length, keeps_mechanism=True)
    assert learned_of(model) == learned
    for name, each in mechanisms_of(model).items():
        assert each.layer.train_length == (32 if "train_length" in mechanism else length)
        if mechanism.startswith("learned-p"):  # a longer table goes on along its own line
            torch.testing.assert_close(each(n), before[name], atol=1e-5, rtol=1e-5)
            assert len(each.p) == each.layer.train_length
    logits = logits_of(model)
    save_model(model, tokenizer, tmp_path / "model")
    made, _ = load_model(str(tmp_path / "model"))
    assert torch.equal(logits_of(made), logits)
    assert train_length_of(made.config) == length


@pytest.mark.parametrize("mechanism", ["ssmax", "grok", "learned-p"])
def test_a_new_mechanism_has_the_length_it_is_trained_at(tmp_path, tokenizer, mechanism):
    build("Llama", vocab_size=1024).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    job = Job(
        recipe("cpu").changed(TINY | {"steps": "1", "learning_rate": "1e-12"}), mechanism, start=str(tmp_path / "start")
    )
    model, _ = load_model(str(train(job, tmp_path / "out", "cpu")))
    assert model.config.ssmax == {"attention": mechanism, "train_length": 64}
    for each in mechanisms_of(model).values():
        assert each.layer.train_length == 64
        if mechanism == "ssmax":
            assert each.s.tolist() == pytest.approx([1 / mean_log_n(64)] * 4, rel=1e-5)


def test_a_longer_table_than_the_training_is_refused_and_another_mechanism_is_not(tokenizer):
    model = build("Llama", vocab_size=1024)
    attach(model, "learned-p")
    with pytest.raises(UserError, match=r"train_length 64: .* learned-p table of 256 tokens; go on at that length"):
        continue_at(copy.deepcopy(model), tokenizer, 64, keeps_mechanism=True)
    continue_at(model, tokenizer, 64, keeps_mechanism=False)
    attach(model, "ssmax")
    assert model.config.ssmax == {"attention": "ssmax", "train_length": 64}


def test_a_users_mechanism_of_other_shapes_is_one_clear_error(tokenizer):
    @register
    class Table(QueryScale):
        """C = t_n"""

        name = "table"

        def __init__(self, layer):
            super().__init__(layer)
            self.t = torch.nn.Parameter(torch.ones(layer.train_length))

        def forward(self, n):
            return self.t[(n.long() - 1).clamp(max=len(self.t) - 1)]

    try:
        model = build("Llama", vocab_size=1024)
        attach(model, "table")
        with pytest.raises(UserError, match="what attention table learned at 256 does not fit; go on at 256"):
            continue_at(model, tokenizer, 64, keeps_mechanism=True)
    finally:
        del MECHANISMS["table"]


ROPE = {"rope_theta": 10_000.0}
# what is computed from max_position_embeddings: learned positions, and RoPE that turns by it
COMPUTED = {
    "GPT2": {},
    "OPT": {},
    "dynamic": {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}},
    "longrope": {
        "original_max_position_embeddings": 128,
        "rope_parameters": {
            **ROPE, "rope_type": "longrope", "original_max_position_embeddings": 128,
            "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("length", [64, 200])
@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_computed_from_the_positions_stays(tmp_path, tokenizer, name, length):
    """The length then stands in an entry of its own, and the model gives what it gave, within its positions and beyond."""
    kind = {"dynamic": "Llama", "longrope": "Phi3"}.get(name, name)
    model = build(kind, vocab_size=1024, **COMPUTED[name])
    positions = model.config.max_position_embeddings
    logits = [logits_of(copy.deepcopy(model), each) for each in (40, 250)]
    continue_at(model, tokenizer, length, keeps_mechanism=True)
    assert model.config.max_position_embeddings == positions
    save_model(model, tokenizer, tmp_path / "model")
    assert train_length_of(config_of(tmp_path / "model")) == length
    made, _ = load_model(str(tmp_path / "model"))
    assert train_length_of(made.config) == length
    for each, expected in zip((40, 250), logits, strict=True):
        assert torch.equal(logits_of(load_model(str(tmp_path / "model"))[0], each), expected)
    continue_at(made, tokenizer, positions, keeps_mechanism=True)  # back again
    assert train_length_of(made.config) == positions


def test_yarn_keeps_its_original_length_and_says_the_new_one(tokenizer):
    rope = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    model = build("Llama", vocab_size=1024, rope_parameters=rope)
    expected = logits_of(model, 200)
    continue_at(model, tokenizer, 128, keeps_mechanism=True)
    assert model.config.rope_parameters["original_max_position_embeddings"] == 64
    assert train_length_of(model.config) == 128
    rebuilt = copy.deepcopy(model)
    rebuilt.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    assert torch.equal(logits_of(rebuilt, 200), expected)


@pytest.mark.parametrize("name", ["GPT2", "OPT"])
def test_more_tokens_than_learned_positions_are_refused(tokenizer, name):
    model = build(name, vocab_size=1024)
    with pytest.raises(
        UserError, match="train_length 512: the model to start from has learned positions for 256 tokens"
    ):
        continue_at(model, tokenizer, 512, keeps_mechanism=True)
