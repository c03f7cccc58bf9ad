"""Training: the same batches for every mechanism, decay where the paper has it, resumption, and the late swap."""

import json
import os
import random
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from architectures import build_small
from safetensors.torch import load_file
from typer.testing import CliRunner

from ssmax_eval.cli import app, main
from ssmax_eval.data.haystacks import haystack
from ssmax_eval.data.needles import Needle
from ssmax_eval.data.prompts import assemble
from ssmax_eval.data.vocabulary import CITIES, HELD_OUT_CITIES
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach, learned_of, mechanisms_of
from ssmax_eval.models.load import load_model
from ssmax_eval.training.architecture import build
from ssmax_eval.training.card import write_card
from ssmax_eval.training.corpus import Corpus, read_sentences, train_tokenizer
from ssmax_eval.training.examples import ANSWER, Examples
from ssmax_eval.training.facts import TRAIN_CITIES, draw_facts, invented_name
from ssmax_eval.training.folder import read_log, read_record
from ssmax_eval.training.job import Job
from ssmax_eval.training.jobs import swapped_after
from ssmax_eval.training.recipes import recipe
from ssmax_eval.training.train import train
from ssmax_eval.training.trainer import WeightedTrainer

# a run of seconds: the shape of a recipe, not its size
TINY = {
    "layers": "1", "hidden": "16", "heads": "2", "feed_forward": "16", "vocabulary": "400", "steps": "12",
    "tokens_per_step": "512", "train_length": "64", "short_length": "32", "text_characters": "20000", "warmup_steps": "2",
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny():
    return recipe("cpu").changed(TINY)


@pytest.fixture(scope="module")
def corpora():
    """Return, by recipe, a tokenizer and a corpus of it."""
    found = {}
    for name in ("smoke", "cpu", "small"):
        chosen = recipe(name).changed({"text_characters": "100000"})
        sentences, sha256 = read_sentences(chosen)
        tokenizer = train_tokenizer(chosen, sentences)
        found[name] = chosen, tokenizer, Corpus.encode(tokenizer, sentences, sha256)
    return found


@pytest.mark.parametrize("name", ["smoke", "cpu", "small"])
def test_sequences_are_exact_and_decided_by_seed_and_index(corpora, name):
    chosen, _, corpus = corpora[name]
    examples, again, other = Examples(chosen, corpus, 0), Examples(chosen, corpus, 0), Examples(chosen, corpus, 1)
    late = len(examples) - 1
    for index in (0, late // 2, late):
        item = examples[index]
        assert item["input_ids"].numel() == item["kinds"].numel() == chosen.train_length
        assert torch.equal(item["input_ids"], again[index]["input_ids"])
        assert not torch.equal(item["input_ids"], other[index]["input_ids"])
    short = chosen.short_steps > 0
    assert examples[0]["input_ids"].shape == ((chosen.train_length // 64, 64) if short else (1, chosen.train_length))


@pytest.mark.parametrize("name", ["smoke", "cpu", "small"])
def test_ids_are_those_of_the_text_they_make(corpora, name):
    """A piece encoded apart equals the encoding of the whole, but for the words cut at the sequence's start."""
    chosen, tokenizer, corpus = corpora[name]
    for index in range(len(Examples(chosen, corpus, 0)) - 20, len(Examples(chosen, corpus, 0))):
        ids = Examples(chosen, corpus, 0)[index]["input_ids"].flatten().tolist()
        start = next(i for i in range(1, len(ids)) if tokenizer.decode([ids[i]]).startswith(" "))
        assert tokenizer(tokenizer.decode(ids[start:])).input_ids == ids[start:]


@pytest.mark.parametrize("name", ["smoke", "cpu", "small"])
def test_every_answer_was_stated_before_it_is_asked(corpora, name):
    chosen, tokenizer, corpus = corpora[name]
    examples = Examples(chosen, corpus, 3)
    answers = 0
    for index in range(len(examples) - 50, len(examples)):
        item = examples[index]
        ids, kinds = item["input_ids"].flatten().tolist(), item["kinds"].flatten().tolist()
        start = 0
        while start < len(ids):
            if kinds[start] != ANSWER:
                start += 1
                continue
            end = next(i for i in range(start, len(ids) + 1) if i == len(ids) or kinds[i] != ANSWER)
            before, answer = tokenizer.decode(ids[:start]), tokenizer.decode(ids[start:end])
            if chosen.task == "single":
                assert f"{(before + answer).rsplit('? ', 1)[-1]}." in before
            else:
                city = before.rsplit(" ", 1)[-1].removesuffix("?")
                assert f" {city}={answer}" in before
            answers += 1
            start = end
    assert answers > 50


def test_facts_are_in_the_probes_own_words(corpora):
    chosen, tokenizer, corpus = corpora["cpu"]
    fact = draw_facts(random.Random(1), chosen, 1)[0]
    (stated, _), (asked, kinds) = Examples(chosen, corpus, 0).encode([fact])[0]
    draw_prompt = assemble(tokenizer, Needle(), haystack("text"), 128, 50, "x")
    text = tokenizer.decode(draw_prompt.ids)
    template = fact.statement.replace(fact.value, "{}")
    assert template.split(" magic ")[0] in text
    assert tokenizer.decode(stated) == f" {fact.statement}"
    assert tokenizer.decode([i for i, w in zip(asked, kinds, strict=True) if w == ANSWER]) == fact.value


def test_held_out_cities_are_never_trained_on():
    rng = random.Random(0)
    seen = {fact.question for name in ("cpu", "small") for _ in range(300) for fact in draw_facts(rng, recipe(name), 4)}
    words = {word.strip("?") for question in seen for word in question.split()}
    assert not words & set(HELD_OUT_CITIES)
    assert words & set(CITIES) == set(TRAIN_CITIES)
    assert len(HELD_OUT_CITIES) == 25


def test_an_invented_name_is_no_city():
    script = [2, "h", "ou", "s", "t", "o", "n"]

    class Scripted(random.Random):
        def choice(self, among):
            return script.pop(0) if script else super().choice(among)

    assert invented_name(Scripted(0)) != "Houston"
    assert not script


def test_no_more_facts_than_there_are_cities():
    assert len(draw_facts(random.Random(0), recipe("cpu"), 1000)) == len(TRAIN_CITIES)


def test_the_smoke_tokenizer_holds_each_fact_and_question_in_one_token(corpora):
    _, tokenizer, _ = corpora["smoke"]
    assert [len(tokenizer(text).input_ids) for text in (" Tokyo=3", " Tokyo?")] == [1, 1]
    prompt = assemble(tokenizer, Needle("recall"), haystack("text"), 128, 50, "seed")
    assert len(prompt.ids) == 128
    assert prompt.answer_length == 1
    assert prompt.needle_end == prompt.needle_start + 1
    text = tokenizer.decode(prompt.ids)
    assert (
        tokenizer(text[text.index(" ") :]).input_ids == prompt.ids[-len(tokenizer(text[text.index(" ") :]).input_ids) :]
    )


def test_first_weights_are_the_same_for_every_mechanism(corpora):
    chosen, tokenizer, _ = corpora["cpu"]
    plain = build(chosen, tokenizer, 5).state_dict()
    for mechanism in ("ssmax", "ssmax-bias", "learned-p"):
        model = build(chosen, tokenizer, 5)
        attach(model, mechanism)
        assert all(
            torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items() if "ssmax" not in name
        )
    assert not torch.equal(build(chosen, tokenizer, 6).lm_head.weight, plain["lm_head.weight"])


def test_position_encodings_turn_the_share_they_say(corpora):
    chosen, tokenizer, _ = corpora["cpu"]
    for position, share in {"rope": 1.0, "p-rope": 0.5, "nope": 0.0}.items():
        frequencies = build(chosen.changed({"position": position}), tokenizer, 0).model.rotary_emb.inv_freq
        assert (frequencies != 0).float().mean() == share


@pytest.mark.parametrize("mechanism", ["ssmax", "ssmax-bias", "learned-p"])
def test_only_matrices_and_embeddings_decay(corpora, mechanism):
    chosen, tokenizer, _ = corpora["cpu"]
    model = build(chosen, tokenizer, 0)
    attach(model, mechanism)
    decayed = WeightedTrainer.get_decay_parameter_names(None, model)
    assert "model.embed_tokens.weight" in decayed
    assert "model.layers.0.mlp.up_proj.weight" in decayed
    assert not [name for name in decayed if "ssmax" in name or "norm" in name]
    assert {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if ".ssmax." in name} == {
        "ssmax": {"s"}, "ssmax-bias": {"s", "b"}, "learned-p": {"s", "b", "p"},
    }[mechanism]  # fmt: skip


@pytest.mark.parametrize(("name", "kept"), [("scale-nq", "n_out_bias"), ("hgrn2", "bounds")])
def test_what_a_mechanism_says_is_no_matrix_is_not_decayed(corpora, name, kept):
    """scale-nq's bias makes it softmax at first, and has three axes; decay would pull it to 0."""
    chosen, tokenizer, _ = corpora["cpu"]
    model = build(chosen, tokenizer, 0)
    attach(model, name)
    decayed = WeightedTrainer.get_decay_parameter_names(None, model)
    assert not [each for each in decayed if each.endswith(f".{kept}")]
    assert [each for each in decayed if each.endswith("q_proj.weight")]


def weights(folder):
    return load_file(folder / "model.safetensors")


class Killed(BaseException):
    pass


@contextmanager
def killed_at(step, recipe):
    """Kill a training run when it asks for the first sequence of a step."""
    get = Examples.__getitem__

    def die(self, index):
        # the check before training looks at the last sequences
        if index == step * recipe.batch_size:
            raise Killed
        return get(self, index)

    Examples.__getitem__ = die
    try:
        with pytest.raises(Killed):
            yield
    finally:
        Examples.__getitem__ = get


def same_weights(one, two):
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_late_swap_survives_kills_on_either_side(tiny, tmp_path):
    """Also one that cuts a checkpoint off while it is written: the last whole one counts."""
    job = Job(tiny, "softmax", swap_to="ssmax", swap_fraction=0.25)
    whole = train(job, tmp_path / "whole", "cpu")
    for step in (7, 10):
        with killed_at(step, tiny):
            train(job, tmp_path / "broken", "cpu")
    last = max((tmp_path / "broken" / "checkpoints").iterdir(), key=lambda folder: int(folder.name.split("-")[1]))
    (last / "trainer_state.json").unlink()
    (last / "optimizer.pt").unlink()
    assert same_weights(whole, train(job, tmp_path / "broken", "cpu"))


def test_a_run_that_was_killed_ends_in_the_same_weights(tiny, tmp_path):
    whole = train(Job(tiny, "ssmax", seed=1), tmp_path / "whole", "cpu")
    broken = tmp_path / "broken"
    with killed_at(7, tiny):
        train(Job(tiny, "ssmax", seed=1), broken, "cpu")
    assert not (broken / "config.json").exists()
    train(Job(tiny, "ssmax", seed=1), broken, "cpu")
    assert same_weights(whole, broken)
    steps = [[line["step"] for line in read_log(folder / "training_log.jsonl")] for folder in (whole, broken)]
    assert steps[0] == steps[1]
    assert not (broken / "checkpoints").exists()
    before = (broken / "model.safetensors").stat().st_mtime_ns
    train(Job(tiny, "ssmax", seed=1), broken, "cpu")
    assert (broken / "model.safetensors").stat().st_mtime_ns == before  # finished: left alone
    with pytest.raises(UserError, match="holds another training run"):
        train(Job(tiny, "ssmax", seed=2), broken, "cpu")


@pytest.mark.slow
def test_two_processes_train_the_same_model(tiny, tmp_path):
    """torchrun shares out the batches of one process; gradients are summed in another order, no more."""
    whole = train(Job(tiny, "ssmax"), tmp_path / "one", "cpu")
    changes = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"]
    command += ["-m", "ssmax_eval", "train", "--recipe", "cpu", "--attention", "ssmax", "--device", "cpu", *changes]
    subprocess.run(
        [*command, "--out", tmp_path / "two"],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    logs = [read_log(tmp_path / name / "training_log.jsonl") for name in ("one", "two")]
    for measure, tolerance in (("loss", 2e-3), ("text_loss", 2e-3), ("recall", 0.02)):  # of all processes' sequences
        one, two = ([line[measure] for line in log] for log in logs)
        assert one == pytest.approx(two, rel=tolerance, abs=0.01 if measure == "recall" else 0)
    for name, tensor in weights(whole).items():
        assert (tensor.float() - weights(tmp_path / "two")[name].float()).abs().max() < 0.02


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_training_ends_where_a_plain_one_does(tiny, tmp_path):
    """torch.compile, its late swap included, makes the same model but for rounding; one graph for each of two lengths and mechanisms."""
    from torch._dynamo.utils import counters

    plain, compiled = (
        train(Job(tiny, swap_to="ssmax", swap_fraction=0.25), tmp_path / str(each), "cpu", compiled=each)
        for each in (False, True)
    )
    logs = [[line["loss"] for line in read_log(folder / "training_log.jsonl")] for folder in (plain, compiled)]
    assert logs[0] == pytest.approx(logs[1], rel=2e-3)
    assert not counters["graph_break"]
    assert load_model(str(compiled))[0].config.model_type == "ssmax_qwen3"
    for name, tensor in weights(plain).items():
        assert (tensor.float() - weights(compiled)[name].float()).abs().max() < 0.02, name


def test_the_late_swap_is_softmax_up_to_its_step(tiny, tmp_path):
    """(f) equals (a) until the swap, its s untouched; afterwards s learns."""
    seen = {}

    def watched(name, job):
        lines = []
        original = WeightedTrainer.compute_loss

        def loss(self, model, inputs, *arguments, **options):
            value = original(self, model, inputs, *arguments, **options)
            lines.append((value.item(), [mechanism.s.detach().clone() for mechanism in mechanisms_of(model).values()]))
            return value

        WeightedTrainer.compute_loss = loss
        try:
            train(job, tmp_path / name, "cpu")
        finally:
            WeightedTrainer.compute_loss = original
        seen[name] = lines

    watched("a", Job(tiny, "softmax"))
    watched("f", Job(tiny, "softmax", swap_to="ssmax", swap_fraction=0.25))
    assert [loss for loss, _ in seen["a"][:9]] == [loss for loss, _ in seen["f"][:9]]
    assert seen["a"][9][0] != seen["f"][9][0]
    start = seen["f"][0][1][0]
    assert torch.equal(seen["f"][9][1][0], start)
    assert not torch.equal(seen["f"][11][1][0], start)
    assert learned_of(load_model(str(tmp_path / "f"))[0])


@pytest.mark.slow
def test_the_papers_configurations_from_one_command(tiny, tmp_path):
    arguments = ["train", "--recipe", "cpu", "--paper", "--out", str(tmp_path), "--device", "cpu", "--jobs", "2"]
    arguments += [part for key, value in (TINY | {"steps": "8"}).items() for part in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    mechanisms = {
        folder.name: json.loads((folder / "config.json").read_text()).get("ssmax", {}) for folder in tmp_path.iterdir()
    }
    assert {name: entry.get("attention") for name, entry in mechanisms.items()} == {
        "cpu-softmax-s0": None,
        "cpu-ssmax-s0": "ssmax",
        "cpu-ssmax-fixed-s0": "ssmax-fixed",
        "cpu-ssmax-bias-s0": "ssmax-bias",
        "cpu-ssmax-after-s0": "ssmax",
        "cpu-ssmax-late-s0": "ssmax",
        "cpu-learned-p-s0": "learned-p",
    }
    for folder in tmp_path.iterdir():
        load_model(str(folder))
        assert {"README.md", "training.svg", "training.json"} <= {file.name for file in folder.iterdir()} | {
            "training.svg"
        }
    # (e) is (a) with a mechanism; trained anew, (a) gets a new (e)
    plain, swapped = (tmp_path / f"cpu-{name}-s0" for name in ("softmax", "ssmax-after"))
    assert all(torch.equal(tensor, weights(swapped)[name]) for name, tensor in weights(plain).items())
    job = Job(recipe("cpu").changed(TINY | {"steps": "8", "text": "generated"}))
    made = (swapped / "model.safetensors").stat().st_mtime_ns
    assert (swapped_after(plain, job) / "model.safetensors").stat().st_mtime_ns == made
    train(Job(tiny, "softmax"), plain, "cpu", fresh=True)
    swapped_after(plain, job)
    assert all(torch.equal(tensor, weights(swapped)[name]) for name, tensor in weights(plain).items())


@pytest.mark.parametrize("mechanism", [None, "ssmax"])
def test_one_that_was_killed_goes_on_with_all_its_weights(tiny, tmp_path, tokenizer, mechanism):
    """Also those that transformers renames and merges on the way from disk: resuming reads a file's names as they are."""
    start = tmp_path / "start"
    build_small("qwen3_moe").save_pretrained(start)
    tokenizer.save_pretrained(start)
    job = Job(tiny, mechanism, start=str(start))
    train(job, tmp_path / "straight", "cpu")
    with killed_at(7, tiny):
        train(job, tmp_path / "killed", "cpu")
    train(job, tmp_path / "killed", "cpu")
    straight, killed = (load_model(str(tmp_path / name))[0].state_dict() for name in ("straight", "killed"))
    assert all(torch.equal(tensor, killed[name]) for name, tensor in straight.items())


def test_training_goes_on_from_a_checkpoint(tiny, tmp_path, checkpoint):
    """The mechanism of a retrofitted model trains further, with the model's own tokenizer."""
    job = Job(tiny, "ssmax", start=str(checkpoint))
    folder = train(job, tmp_path / "further", "cpu")
    model, tokenizer = load_model(str(folder))
    assert len(tokenizer) == 1024
    assert model.config.model_type == "ssmax_llama"
    s = next(iter(learned_of(model).values()))["s"]
    assert len(set(s)) > 1
    assert str(checkpoint) not in (folder / "training.json").read_text()
    # on from there: what was learned stays, unless another mechanism is asked for
    barely = tiny.changed({"steps": "1", "learning_rate": "1e-12"})
    for mechanism, kept in ((None, s), ("ssmax", s), ("softmax", None)):
        again = train(Job(barely, mechanism, start=str(folder)), tmp_path / f"again-{mechanism}", "cpu")
        learned = learned_of(load_model(str(again))[0])
        assert (next(iter(learned.values()))["s"] == pytest.approx(s, abs=1e-6)) if kept else not learned
        assert read_record(again)["attention"] == ("ssmax" if kept else "softmax")


def test_a_finished_record_names_no_path(tiny, tmp_path):
    text = tmp_path / "some" / "texts"
    text.mkdir(parents=True)
    (text / "one.txt").write_text("The mill was old. The river was slow. Nobody came. " * 200)
    folder = train(Job(tiny.changed({"text": str(text)})), tmp_path / "out", "cpu")
    record = read_record(folder)
    assert record["job"]["recipe"]["text"] == "texts"
    assert str(tmp_path) not in json.dumps(record)
    assert record["finished"]
    assert record["last"]["step"] == 12
    assert record["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "large"], "recipe 'large': allowed are smoke, league, encoder, cpu, small, gpu"),
        (["--recipe", "smoke", "--set", "layer=2"], "recipe field 'layer'"),
        (["--recipe", "smoke", "--set", "layers=two"], "layers='two': allowed is a whole number"),
        (["--recipe", "smoke", "--set", "layers=0"], "recipe layers 0"),
        (
            ["--recipe", "smoke", "--set", "position=sine"],
            "recipe position 'sine': allowed are rope, p-rope, nope, alibi",
        ),
        (["--recipe", "smoke", "--set", "train_length=100"], "recipe train_length 100"),
        (["--recipe", "smoke", "--set", "hidden=65"], "recipe hidden 65"),
        (["--recipe", "smoke", "--attention", "sharp"], "unknown attention mechanism 'sharp'"),
        (["--recipe", "smoke", "--attention", "ssmax", "--swap-to", "ssmax"], "a swap starts from softmax"),
        (["--recipe", "smoke", "--swap-to", "ssmax", "--swap-fraction", "1"], "swap fraction 1"),
        (["--recipe", "smoke", "--text", "nowhere.txt"], "text 'nowhere.txt': no such file; allowed are generated"),
        (["--recipe", "smoke", "--seed", "-1"], "seed -1"),
        (["--recipe", "smoke", "--paper", "--attention", "ssmax"], "--paper trains its own list"),
        (["--recipe", "smoke", "--device", "tpu"], "device 'tpu'"),
        (["--recipe", "smoke", "--text", "noise"], "text 'noise': no such file; allowed are generated, bible"),
        (["--recipe", "smoke", "--set", "short_length=0"], "recipe short_length 0"),
        (["--recipe", "smoke", "--set", "text_characters=0"], "recipe text_characters 0"),
        (["--recipe", "smoke", "--set", "questions=0"], "recipe questions 0"),
        (["--recipe", "cpu", "--set", "digits=9:3"], "recipe digits 9:3"),
        (
            ["--recipe", "cpu", "--set", "text=generated", "--set", "digits=40:40", "--set", "train_length=64"],
            "no fact and",
        ),
        (["--recipe", "smoke", "--jobs", "0"], "jobs 0"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(tmp_path, capsys, arguments, message):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit:
        main(["train", *arguments, "--out", str(out)])
    errors = capsys.readouterr().err
    assert (exit.value.code, len(errors.splitlines())) == (2, 1)
    assert message in errors
    assert not out.exists()


def test_a_folder_with_something_else_is_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with pytest.raises(UserError, match="holds something else than a training run"):
            train(Job(tiny), tmp_path, "cpu", fresh)
    assert (tmp_path / "thesis.tex").exists()


def test_a_text_too_short_and_a_record_half_written(tiny, tmp_path):
    (tmp_path / "short.txt").write_text("The mill was old.")
    with pytest.raises(UserError, match="tokens are too few for sequences of 64"):
        train(Job(tiny.changed({"text": str(tmp_path / "short.txt")})), tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "training.json").write_text("")
    with pytest.raises(UserError, match="holds something else"):
        train(Job(tiny), tmp_path / "half", "cpu")


def test_the_card_says_what_is_so(tiny, tmp_path):
    folder = train(Job(tiny.changed({"task": "recall", "spacing": "12"}), "ssmax"), tmp_path / "recall", "cpu")
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "attention mechanism\n`ssmax`" in card or "attention mechanism `ssmax`" in card
    assert "never among them" not in card
    assert "trust_remote_code=True" in card
