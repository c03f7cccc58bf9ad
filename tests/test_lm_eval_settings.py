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


def test_the_help_of_lm_eval_says_what_is_added(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ssmax-eval"])
    with pytest.raises(SystemExit):
        main(["lm-eval", "--help"])
    out = capsys.readouterr().out
    for word in ("--import FILE.py", "--model ssmax-eval", "ssmax_attention_mass", "context_lengths", "usage: lm-eval"):
        assert word in out
