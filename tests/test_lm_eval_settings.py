"""Settings of our lm-eval tasks that nobody takes are refused, and the command says what it adds to lm-eval's own."""

import pytest

pytest.importorskip("lm_eval")

from ssmax_eval.cli import main
from ssmax_eval.errors import UserError
from ssmax_eval.harness.documents import needle_prompts


def test_metadata_that_none_of_the_tasks_takes_is_refused(tokenizer, monkeypatch):
    """Where lm-eval's command line tells settings from the model's arguments, and all its tasks are ours."""
    grid = {"context_lengths": [96], "depth_percents": [50], "trials": 1, "tokenizer": tokenizer}
    line = ["--model", "hf", "--model_args", "pretrained=x,dtype=float32", "--metadata", '{"nonsense": 1}', "--tasks"]
    for name in ("/somewhere/bin/lm_eval", "lm-eval"):
        monkeypatch.setattr("sys.argv", [name, "run", *line, "ssmax_needle,ssmax_loss"])
        with pytest.raises(UserError, match="metadata 'nonsense': not a setting; allowed are context_lengths,"):
            needle_prompts(nonsense=1, dtype="float32", **grid)
        assert needle_prompts(dtype="float32", **grid)
        monkeypatch.setattr("sys.argv", [name, *line, "ssmax_needle", "niah_single_1"])
        assert needle_prompts(nonsense=1, **grid)
    for wrong in ({"needles": -1}, {"task": ""}, {"value": ""}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} "):
            needle_prompts(**wrong, **grid)


@pytest.mark.parametrize("name", ["landmark", "profession"])
def test_needles_whose_question_has_other_words_make_documents(tokenizer, name):
    """The control that they bring along is none of lm-eval's prompts, and has no length of its own."""
    grid = {"context_lengths": [512, 256], "depth_percents": [0, 100], "trials": 2, "tokenizer": tokenizer}
    docs = needle_prompts(needle_file=name, **grid)["test"]
    assert [doc["context_length"] for doc in docs] == [256, 512, 256, 512] * 2
    assert sorted({doc["depth_percent"] for doc in docs}) == [0, 100]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"needle_file": "german", "value": "uuid"}, "value 'uuid': needle file 'german' says its values"),
        ({"needle_file": "german", "needles": 3}, "needles 3: of our multi tasks"),
        ({"needle": "Ada is in.", "question": "Where is Ada?", "answer": "in", "value": "uuid"}, "value 'uuid': needle has no"),
        ({"needle_file": "german", "task": "digits"}, "task 'digits': a needle of your own"),
    ],
)  # fmt: skip
def test_settings_that_a_needle_of_ones_own_does_not_take_are_refused(tokenizer, given, says):
    with pytest.raises(UserError, match=says):
        needle_prompts(**given, context_lengths=[256], trials=1, tokenizer=tokenizer)


def test_the_help_of_lm_eval_says_what_is_added(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ssmax-eval"])
    with pytest.raises(SystemExit):
        main(["lm-eval", "--help"])
    out = capsys.readouterr().out
    for word in ("--import FILE.py", "--model ssmax-eval", "ssmax_attention_mass", "context_lengths", "usage: lm-eval"):
        assert word in out
