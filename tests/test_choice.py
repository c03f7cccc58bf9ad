"""Task choice: fine-tuned on in words that no needle has, scored by lm-eval as multiple choice."""

import random

import pytest
import torch
from harnessed import evaluate, metrics, ours, stock
from test_training import TINY

from ssmax_eval import UserError, load_model
from ssmax_eval.data.haystacks import haystack
from ssmax_eval.data.needles import Needle
from ssmax_eval.data.prompts import assemble
from ssmax_eval.data.prose import prose
from ssmax_eval.data.vocabulary import CHOICES, HELD_OUT_CITIES
from ssmax_eval.harness.samples import row_of
from ssmax_eval.models.sources import BUNDLED
from ssmax_eval.probes.by_model import default_task
from ssmax_eval.training.card import write_card
from ssmax_eval.training.corpus import Corpus
from ssmax_eval.training.examples import ANSWER, Examples
from ssmax_eval.training.facts import draw_facts
from ssmax_eval.training.job import Job
from ssmax_eval.training.recipes import recipe
from ssmax_eval.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore")
GRID = {"context_lengths": [192, 256], "depth_percents": [0, 100], "trials": 2}


def test_a_prompt_has_four_choices_and_asks_for_one(tokenizer):
    prompt = assemble(tokenizer, Needle("choice"), haystack("text"), 256, 50, "1", haystack_seed="2")
    text = tokenizer.decode(prompt.ids)
    city = prompt.needle.removeprefix("The people of ").partition(" ")[0]
    assert len(prompt.ids) == 256
    assert prompt.needle == f"The people of {city} chose {prompt.expected}."
    assert text.endswith(f"What did the people of {city} choose? The people of {city} chose {prompt.expected}")
    told = [word for word in CHOICES if f" chose {word}." in text]
    assert len(told) == 4
    assert prompt.expected in told


def test_needles_are_at_most_as_many_as_choices():
    assert Needle("choice", needles=8).value == "word"
    with pytest.raises(UserError, match="needles 9: allowed are 2 to 8"):
        Needle("choice", needles=9)


def test_no_choice_is_a_word_of_the_haystack():
    rng = random.Random(0)
    words = {
        word.strip('.,"!?').lower()
        for sentence, _ in zip(prose(rng), range(5000), strict=False)
        for word in sentence.split()
    }
    assert not words & set(CHOICES)


def test_training_states_what_it_asks_and_leaves_cities_for_the_test():
    chosen = recipe("cpu").changed({"task": "choice", "short_share": "0"})
    _, words = load_model("softmax-bible-2m", device="cpu")
    sentences = ["The mill was old.", "The river was slow and the road was long."] * 500
    examples = Examples(chosen, Corpus.encode(words, sentences, "x"), 0)
    asked = 0
    for index in range(20):
        item = examples[index]
        ids, kinds = item["input_ids"].flatten(), item["kinds"].flatten()
        text = words.decode(ids)
        assert ids.numel() == 256
        for at in (kinds == ANSWER).nonzero().flatten().tolist():
            city = words.decode(ids[:at]).rpartition(" The people of ")[2].removesuffix(" chose")
            value = words.decode(ids[at]).strip()
            assert f"The people of {city} chose {value}." in text
            assert city not in HELD_OUT_CITIES
            asked += 1
    assert asked > 20
    assert {fact.value for fact in draw_facts(random.Random(0), chosen, 40)} == set(CHOICES)


def likelihoods(model, tokenizer, doc):
    """Return the log-likelihood of each choice in nats, each from a forward of its own, without our readers."""
    found = []
    for word in CHOICES:
        context = tokenizer(doc["context"]).input_ids
        ids = tokenizer(f"{doc['context']} {word}").input_ids
        assert ids[: len(context)] == context
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        found.append(sum(logs[i - 1, ids[i]].item() for i in range(len(context), len(ids))))
    return found


@pytest.mark.parametrize("make", [ours, stock])
@pytest.mark.parametrize("name", ["one token a choice", "several"])
def test_lm_eval_scores_what_a_plain_forward_says(checkpoint, make, name):
    folder = checkpoint if name == "several" else BUNDLED / "ssmax-bible-2m"
    lm = make(folder, dtype="float32", batch_size=2)
    results = evaluate(lm, "ssmax_choice", pretrained=str(folder), **GRID)
    samples = results["samples"]["ssmax_choice"]
    assert len(samples) == 8
    for sample in samples:
        doc = sample["doc"]
        found = likelihoods(lm.model, lm.tokenizer, doc)
        assert sample["nll"] == pytest.approx(-found[doc["gold"]], abs=1e-3)
        assert sample["acc"] == (found.index(max(found)) == doc["gold"])
        row = row_of(sample)
        assert row["task"] == "choice"
        assert row["credit"] == row["correct"] == bool(sample["acc"])
        assert len(doc["choices"]) == len(sample["resps"]) == 8
    told = metrics(results, "ssmax_choice")
    assert told["acc"] == pytest.approx(sum(sample["acc"] for sample in samples) / 8)
    assert {"acc_192", "acc_256", "nll"} <= told.keys()


def test_a_model_goes_on_with_the_task_and_says_so(checkpoint, tmp_path):
    tiny = recipe("cpu").changed(TINY | {"steps": "1", "task": "choice", "train_length": "128", "text": "generated"})
    folder = train(Job(tiny, start=str(checkpoint)), tmp_path / "tuned", "cpu")
    write_card(folder)
    assert "| facts | task choice," in (folder / "README.md").read_text()
    assert default_task([str(folder)]) == "choice"
