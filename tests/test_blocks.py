"""Recipes on GPT-2's and GPT-NeoX's blocks: one first model for every mechanism, checkpoints that open everywhere, positions."""

import json
import math

import pytest
import torch
from test_training import TINY
from tiny import tokens
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import ssmax_eval.api as api
from ssmax_eval import UserError, load_model
from ssmax_eval.mechanisms.attach import attach, mechanisms_of, own_position
from ssmax_eval.mechanisms.train_length import train_length_of
from ssmax_eval.models.load import load_tokenizer
from ssmax_eval.models.shape import blank
from ssmax_eval.models.sources import resolve
from ssmax_eval.position.bias import biases
from ssmax_eval.position.learned import position_end
from ssmax_eval.setting import Setting
from ssmax_eval.training.architecture import build
from ssmax_eval.training.card import write_card
from ssmax_eval.training.folder import read_record
from ssmax_eval.training.job import Job
from ssmax_eval.training.recipes import BLOCKS, recipe
from ssmax_eval.training.throughput import flops_per_token
from ssmax_eval.training.train import first_model, train

STEPS = TINY | {"steps": "4", "text": "generated", "qk_norm": "false"}
TYPES = {"gpt2": "gpt2", "gpt-neox": "gpt_neox"}
# trained below: blocks, position, mechanism
TRAINED = [
    ("gpt2", "learned", "ssmax"),
    ("gpt2", "nope", "softmax"),
    ("gpt2", "t5", "entmax-1.5"),
    ("gpt-neox", "p-rope", "softmax"),
    ("gpt-neox", "alibi", "ssmax"),
]


def small(blocks, position, **changes):
    return recipe("cpu").changed(STEPS | {"blocks": blocks, "position": position} | changes)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return load_tokenizer(resolve("softmax-bible-2m"), False)


@pytest.fixture(scope="module", params=TRAINED, ids="-".join)
def trained(request, tmp_path_factory):
    """Return blocks, position, mechanism, and the folder of a model that was trained so."""
    blocks, position, mechanism = request.param
    folder = tmp_path_factory.mktemp("blocks") / "model"
    train(Job(small(blocks, position), mechanism), folder, "cpu")
    return blocks, position, mechanism, folder


def test_a_checkpoint_opens_everywhere_to_equal_logits(trained):
    blocks, position, mechanism, folder = trained
    model, _ = load_model(str(folder), dtype="float32", device="cpu")
    other = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    length = 64 if position == "learned" else 200
    with torch.no_grad():
        assert torch.equal(model(tokens(2, length)).logits, other(tokens(2, length)).logits)
    plain = mechanism == "softmax" and position in BLOCKS["llama"] and blocks != "gpt2"
    assert model.config.model_type == ("" if plain else "ssmax_") + TYPES[blocks]
    assert own_position(model) == (position if position in biases() or (blocks, position) == ("gpt2", "nope") else None)
    for each in (model, blank(resolve(str(folder)))):
        assert position_end(each) == (64 if position == "learned" else None)
    assert train_length_of(model.config) == 64


def test_probes_read_it_and_say_where_positions_end(trained):
    _, position, _, folder = trained
    grid = {"depth_percents": (50,), "trials": 1, "dtype": "float32", "device": "cpu", "output_path": folder / "needle"}
    if position == "learned":
        with pytest.raises(UserError, match="positions"):
            api.needle(str(folder), context_lengths=(96,), **grid)
    lengths = (64,) if position == "learned" else (64, 128)
    assert len(api.needle(str(folder), context_lengths=lengths, **grid)) == len(lengths)
    document = {"documents": 1, "window": 8, "dtype": "float32", "device": "cpu", "output_path": folder / "loss"}
    rows = api.loss(str(folder), context_length=lengths[-1], **document)
    assert rows["nll_sum"].map(math.isfinite).all()


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_reads_it_as_the_probe_does(trained):
    """Through lm-eval's own model type, beyond the training length too where positions do not end."""
    from harnessed import evaluate, stock

    _, position, _, folder = trained
    grid = {"context_lengths": [64 if position == "learned" else 128], "depth_percents": [50], "trials": 1}
    native = api.needle(str(folder), **grid, dtype="float32", device="cpu", output_path=folder / "native")
    lm = stock(folder, dtype="float32", batch_size=1)
    (sample,) = evaluate(lm, "ssmax_needle", pretrained=str(folder), **grid)["samples"]["ssmax_needle"]
    assert sample["nll"] == pytest.approx(native["answer_nll"].item(), abs=1e-3)


def test_record_and_card_say_the_blocks_and_training_goes_on(trained, tmp_path):
    blocks, position, mechanism, folder = trained
    record = read_record(folder)
    assert record["job"]["recipe"]["blocks"] == blocks
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert f"| blocks | {blocks} |" in card
    assert "| layers, width, heads | 1, 16, 2 |" in card
    said = {"learned": "| position | learned, for 64 tokens and no more |", "p-rope": "'partial_rotary_factor': 0.5"}
    assert said.get(position, f"| position | {position} |").replace("'", '"') in card.replace("'", '"')
    if position != "learned":
        longer = recipe("cpu").changed(TINY | {"steps": "1", "text": "generated", "train_length": "128"})
        further = train(Job(longer, start=str(folder)), tmp_path / "further", "cpu")
        model, _ = load_model(str(further))
        assert train_length_of(model.config) == 128
        assert position_end(model) is None
        assert read_record(further)["attention"] == mechanism
        assert own_position(model) == own_position(load_model(str(folder))[0])


@pytest.mark.parametrize(
    ("blocks", "position"), [(b, p) for b in TYPES for p in (*BLOCKS[b], *biases()) if "rope" not in p or b != "gpt2"]
)
def test_weights_of_blocks_are_the_same_for_every_mechanism(words, blocks, position):
    chosen = small(blocks, position)
    plain = build(chosen, words, 5).state_dict()
    for mechanism in ("ssmax", "learned-p", "differential"):
        job = Job(chosen, mechanism, seed=5)
        model = build(chosen, words, 5)
        attach(model, mechanism)
        own = {name: tensor for name, tensor in model.state_dict().items() if ".ssmax." not in name}
        assert own.keys() == plain.keys()
        assert all(torch.equal(tensor, plain[name]) for name, tensor in own.items())
        assert job.name == f"cpu-{mechanism}-s5"
    head = build(chosen, words, 6).get_output_embeddings().weight
    assert not torch.equal(head, build(chosen, words, 5).get_output_embeddings().weight)
    assert head.std().item() == pytest.approx(chosen.init_std, rel=0.05)


@pytest.mark.parametrize("blocks", TYPES)
def test_what_writes_to_the_residual_stream_is_drawn_smaller(words, blocks):
    """By sqrt(2 layers), and all biases are 0."""
    chosen = small(blocks, "nope", layers="2", hidden="128", feed_forward="128", heads="2")
    model = build(chosen, words, 0)
    writers = {"gpt2": ("attn.c_proj", "mlp.c_proj"), "gpt-neox": ("attention.dense", "mlp.dense_4h_to_h")}[blocks]
    found = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            writes = name.removesuffix(".weight").endswith(writers)
            found += writes
            assert parameter.std().item() == pytest.approx(chosen.init_std / (2 if writes else 1), rel=0.05), name
        elif name.endswith("bias"):
            assert not parameter.any()
    assert found == 4


@pytest.mark.parametrize("blocks", TYPES)
def test_nothing_but_the_position_tells_tokens_apart(words, blocks):
    """Without one, what a row gives is a matter of which tokens came before it, and not of their order."""
    ids = tokens(1, 30)
    mixed = torch.cat([ids[:, torch.randperm(29, generator=torch.Generator().manual_seed(1))], ids[:, 29:]], 1)
    for position, same in {"nope": True, "alibi": False, BLOCKS[blocks][0]: False}.items():
        chosen = small(blocks, position)
        model, _ = first_model(Job(chosen), ["The mill was old. " * 50] * 20)
        with torch.no_grad():
            one, other = (model(each).logits[:, -1] for each in (ids, mixed))
        assert torch.allclose(one, other, atol=1e-6) == same


@pytest.mark.parametrize("blocks", TYPES)
def test_operations_of_blocks_are_those_that_torch_counts(words, blocks):
    """As for Llama in test_throughput.py: a learned table is looked up, a bias's table is no matrix product."""
    model = build(small(blocks, "t5" if blocks == "gpt-neox" else "learned"), words, 0)
    before = flops_per_token(model, 48)
    attach(model, "ssmax", bias="t5")
    assert flops_per_token(model, 48) == before
    model.config._attn_implementation = "eager"
    plain = build(small(blocks, BLOCKS[blocks][0]), words, 0)
    plain.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        plain(input_ids=torch.zeros(3, 48, dtype=torch.long)).logits.sum().backward()
    attention = 12 * 16 * (48 - 49 / 2)
    assert counter.get_total_flops() == pytest.approx(3 * 48 * (before + attention), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": "bloom"}, "recipe blocks 'bloom': allowed are llama, gpt2, gpt-neox, eurobert"),
        (
            {"blocks": "gpt2"},
            "recipe blocks gpt2, position 'p-rope': allowed are learned, nope, alibi, t5; QK-norm: they have none; --set qk_norm=false",
        ),
        ({"blocks": "gpt-neox"}, "recipe blocks gpt-neox, QK-norm: they have none; --set qk_norm=false"),
        (
            {"blocks": "gpt-neox", "qk_norm": "false", "position": "learned"},
            "recipe blocks gpt-neox, position 'learned': allowed are rope, p-rope, nope, alibi, t5",
        ),
        ({"position": "learned"}, "recipe position 'learned': allowed are rope, p-rope, nope, alibi, t5"),
    ],
)
def test_what_blocks_do_not_have_is_one_line(changes, message):
    with pytest.raises(UserError) as error:
        recipe("cpu").changed(changes)
    assert str(error.value) == message


def test_a_record_of_before_there_were_blocks_is_still_the_same_job():
    assert "blocks" not in Job(recipe("smoke")).key("x")["recipe"]
    assert Job(small("gpt2", "nope")).key("x")["recipe"]["blocks"] == "gpt2"


def test_settings_of_a_model_without_a_table(words, tmp_path):
    """GPT-2's blocks without positions take a bias, and another mechanism; taking off what is not there is refused."""
    model, _ = first_model(Job(small("gpt2", "nope")), ["The mill was old. " * 50] * 20)
    ids = tokens(1, 150)
    with torch.no_grad():
        before = model(ids).logits
        for setting in (Setting.of("ssmax"), Setting.of(position="alibi"), Setting.of("ssmax", position="alibi")):
            with setting(model) as effective:
                assert effective.has_mechanism
                assert not torch.equal(model(ids).logits, before)
            assert torch.equal(model(ids).logits, before)
        with (
            pytest.raises(UserError, match="the model has no RoPE to be taken off"),
            Setting.of(position="nope")(model),
        ):
            pass
    assert own_position(model) == "nope"
    assert all(each.position_bias.name == "nope" for each in mechanisms_of(model).values())
    assert json.loads(model.config.to_json_string())["ssmax"]["position"] == "nope"
