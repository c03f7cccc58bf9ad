"""Models that transformers does not load: functions and servers, through the same grid, with the same prompts and verdicts."""

import importlib
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from served import Served, serving
from test_cli import GRID, call

import ssmax_eval
from ssmax_eval import UserError
from ssmax_eval.models.foreign import foreign_named
from ssmax_eval.results import find_runs

SMALL = {"context_lengths": [96, 160], "depth_percents": [0, 50, 100], "trials": 1}
EMPTY = [
    "answer_nll",
    "margin",
    "first_correct",
    "answer_ranks",
    "predicted_tokens",
    "dtype",
    "attention",
    "rope_theta",
]
FINDS = """
import re

def answer(context, question):
    city = re.search(r"magic (.+?) number", question)[1]
    found = re.search(rf"special magic {city} number is: (\\d+)\\.", context)
    return f"It is {found[1]}." if found else "I do not know."
"""


def finds(context, question):
    """Find a number by the words of its question."""
    city = re.search(r"magic (.+?) number", question)[1]
    found = re.search(rf"special magic {city} number is: (\d+)\.", context)
    return f"It is {found[1]}." if found else "I do not know."


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return a file with a function, in the folder that is current."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FINDS)
    return tmp_path / "mine.py"


# functions


def test_a_function_reads_the_prompts_that_a_model_reads(checkpoint, tokenizer, tmp_path):
    """Counted by the model's tokenizer, its prompts are the model's; what text does not tell is empty and not 0."""

    class Finds:
        tokenizer = str(checkpoint)

        def __call__(self, context, question):
            assert "is: " not in question[-1:]
            return finds(context, question)

    rows = ssmax_eval.needle({"mine": Finds()}, **SMALL, controls=["no-needle"], output_path=tmp_path)
    model = ssmax_eval.needle(str(checkpoint), **SMALL, controls=["no-needle"], output_path=tmp_path)
    assert list(rows["prompt_sha256"]) == list(model["prompt_sha256"])
    assert set(rows["scoring"]) == {"generate"}
    grid = rows["control"].isna()
    assert rows["correct"][grid].all()
    assert not rows["correct"][~grid].any()
    assert rows[EMPTY].isna().all(axis=None)
    record = find_runs(tmp_path / "needle")
    told = next(run.record() for run in record if run.record()["model"]["label"] == "mine")["model"]["foreign"]
    assert told["kind"] == "function"
    assert (told["tokenizer"]["reference"], told["tokenizer"]["named_by"]) == (checkpoint.name, "the function's own")
    assert len(told["tokenizer"]["sha256"]) == 64


def test_a_function_is_told_the_context_and_the_question_apart(tmp_path):
    asked = []

    def answer(context, question):
        asked.append((context, question))
        return ""

    rows = ssmax_eval.needle(answer, context_lengths=[200], depth_percents=[50], trials=1, output_path=tmp_path)
    [(context, question)] = asked
    assert rows["needle"][0] in context
    assert question == rows["question"][0]
    assert question not in context
    assert rows["expected"][0] not in question


def test_an_edited_file_answers_as_it_is_now(mine, monkeypatch):
    """Edited within a second, to the same size, as Python caches; no cache is left beside it."""
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    for word in ("one", "two", "one"):
        mine.write_text(f"def answer(context, question):\n    return '{word}'\n")
        assert foreign_named("mine.py:answer", None)[1].answer("", "") == word
    assert [*mine.parent.iterdir()] == [mine]


def test_a_function_on_the_command_line(capsys, mine):
    """The same rows as from Python; a second command changes nothing; the page and its JSON have no number for what is not there."""
    words = ("needle", "--model", "M=mine.py:answer", *GRID)
    code, out, err = call(capsys, *words, "--json")
    assert code == 0
    assert "a function gives text alone: answers are generated" in err
    found = json.loads(out)
    assert found["failed"] == 0
    run = find_runs(mine.parent / "results")[0]
    before = run.rows_path.read_bytes()
    assert call(capsys, *words)[0] == 0
    assert run.rows_path.read_bytes() == before
    told = run.record()["model"]
    assert (told["label"], told["foreign"]["file"]) == ("M", "mine.py")
    assert told["foreign"]["tokenizer"]["named_by"] == "nobody: a bundled one"
    page = (mine.parent / found["report"]).read_text()
    assert "function mine:answer, prompts counted by the tokenizer of softmax-bible-2m" in page
    assert ">None<" not in page
    assert ">nan<" not in page
    mine.write_text(FINDS + "\n# edited\n")
    assert call(capsys, *words)[0] == 0
    assert len(find_runs(mine.parent / "results")) == 2


def test_what_a_function_raises_is_no_wrong_answer(capsys, mine):
    """A sample that failed has no score and a reason; the same command tries it again, and it alone."""
    mine.write_text(FINDS.replace("def answer", "def finds") + "from pathlib import Path\ndef answer(context, question):\n"
                    "    with open('asked', 'a') as log: print(question, file=log)\n"
                    "    if len(context) > 200 and not Path('mended').exists():\n"
                    "        raise MemoryError('no room\\nfor it')\n    return finds(context, question)\n")  # fmt: skip
    words = ("needle", "--model", "mine.py:answer", *GRID)
    code, out, _ = call(capsys, *words)
    assert code == 0
    rows = ssmax_eval.load_results("results")
    failed = rows["error"].notna()
    assert 0 < failed.sum() < len(rows)
    assert set(rows["error"][failed]) == {"MemoryError: no room for it"}
    assert rows[failed][["correct", "credit"]].isna().all(axis=None)
    assert f"{failed.sum()} rows without a score: MemoryError: no room for it" in out
    (mine.parent / "mended").touch()
    (mine.parent / "asked").unlink()
    assert call(capsys, *words)[0] == 0
    assert len((mine.parent / "asked").read_text().splitlines()) == failed.sum()
    rows = ssmax_eval.load_results("results")
    assert rows["correct"].all()


def test_what_is_no_text_is_no_answer(tmp_path):
    rows = ssmax_eval.needle({"m": lambda context, question: 7}, **SMALL, output_path=tmp_path)
    assert set(rows["error"]) == {"the function returned int, no text"}
    assert rows["correct"].isna().all()


def test_half_a_character_is_stored(tmp_path):
    rows = ssmax_eval.needle({"m": lambda *_: "\ud800 no"}, **SMALL, output_path=tmp_path)
    assert set(rows["predicted"]) == {"? no"}


def test_a_batch_is_asked_at_once(tmp_path):
    sizes = []

    def answer(context, question):
        raise AssertionError

    def batch(contexts, questions):
        sizes.append(len(contexts))
        return [finds(*each) for each in zip(contexts, questions, strict=True)]

    answer.batch = batch
    rows = ssmax_eval.needle({"m": answer}, **SMALL, batch_size=3, output_path=tmp_path)
    assert sizes == [3, 3]
    assert rows["correct"].all()
    answer.batch = lambda contexts, questions: ["one"]
    rows = ssmax_eval.needle({"m": answer}, **SMALL, batch_size=3, output_path=tmp_path)
    assert set(rows["error"]) == {"batch() returned 1 texts for 3 prompts"}


def test_an_object_starts_over_and_a_files_function_does_not(tmp_path, caplog, mine, monkeypatch):
    """Not of this file, whose text pytest rewrote on the way."""
    monkeypatch.syspath_prepend(mine.parent)
    asked = []

    def inner(context, question):
        asked.append(question)
        return ""

    for _ in range(2):
        ssmax_eval.needle({"m": inner}, **SMALL, output_path=tmp_path)
    assert len(asked) == 12
    assert "its runs start over, stored rows are not used: it is no function of a file" in caplog.text
    caplog.clear()
    ssmax_eval.needle({"m": importlib.import_module("mine").answer}, **SMALL, output_path=tmp_path)
    del sys.modules["mine"]
    assert "start over" not in caplog.text


def test_run_does_what_a_function_can(capsys, mine, checkpoint):
    """Beside a model: its attention and loss, and of the function the needle; one page."""
    words = ("run", "--model", "mine.py:answer", "--model", checkpoint, *GRID, "--documents", "1")
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert "a function gives text alone: needle in place of attention" in err
    assert "a function gives text alone: no needed-scale" in err
    assert "a function gives text alone: no loss" in err
    rows = ssmax_eval.load_results("results")
    assert {name: set(part["model"]) for name, part in rows.groupby("probe")} == {
        "needle": {"mine:answer"},
        "attention": {checkpoint.name},
        "needed-scale": {checkpoint.name},
        "loss": {checkpoint.name},
    }
    page = (mine.parent / out.strip().splitlines()[-1]).read_text()
    assert "mine:answer" in page
    assert ">nan<" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("needle", "--model", "mine.py:nobody"), "there is no nobody in it"),
        (("needle", "--model", "none.py:answer"), "there is no file none.py"),
        (("needle", "--model", "mine.py"), "or a function in it: mine.py:FUNCTION"),
        (("needle", "--model", "mine.py:__name__"), "it is no function"),
        (("needle", "--model", "no_such_module:answer"), "no_such_module cannot be imported"),
        (("needle", "--model", "broken.py:answer"), "it cannot be run (ZeroDivisionError"),
        (("needle", "--model", "mine.py:answer", "--attention", "ssmax"), "ssmax cannot be put on a function or a server"),
        (("needle", "--model", "mine.py:answer", "--rope-theta-factor", "2"), "cannot be put on a function or a server"),
        (("needle", "--model", "mine.py:answer", "--chunk", "8"), "chunk 8: a function or a server reads as it does"),
        (("needle", "--model", "mine.py:answer", "--tokenizer", "nobody"), "nobody"),
        (("attention", "--model", "mine.py:answer"), "attention: model 'mine:answer': a function gives text alone"),
        (("loss", "--model", "mine.py:answer"), "loss: model 'mine:answer': a function gives text alone"),
        (("needle", "--tokenizer", "smollm2-135m"), "these models bring their own"),
        (("needle", "--model", "http://127.0.0.1:1/v1#m"), "--tokenizer REF"),
        (("needle", "--model", "http://127.0.0.1:1/v1", "--tokenizer", "ssmax-bible-2m"), "it names no model"),
        (("needle", "--model", "http://me:sesame@h/v1#m", "--tokenizer", "ssmax-bible-2m"), "would be stored"),
        (("needle", "--model", "http://h/v1?k=sesame#m", "--tokenizer", "ssmax-bible-2m"), "would be stored"),
        (("needle", "--model", "http://h:sesame/v1#m", "--tokenizer", "ssmax-bible-2m"), "its URL cannot be read"),
        (("lm-eval", "--model", "ssmax-eval", "--model_args", "pretrained=mine.py:answer"), ""),
    ],
)  # fmt: skip
def test_refusals(capsys, mine, words, said):
    (mine.parent / "broken.py").write_text("1 / 0")
    if words[0] == "lm-eval":
        with pytest.raises(UserError, match="read by needle, loss and run alone"):
            ssmax_eval.load_model("mine.py:answer")
        return
    code, _, err = call(capsys, *words)
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("ssmax-eval: error: ")
    assert said in last
    assert "sesame" not in err
    assert not (mine.parent / "results").exists() or not find_some(mine.parent)


def find_some(folder):
    return [*folder.rglob("run.json")]


def test_a_dry_run_of_a_function(capsys, mine):
    code, out, _ = call(capsys, "needle", "--model", "mine.py:answer", "--dry-run", *GRID)
    assert code == 0
    assert "operations unknown" in out
    assert "memory" not in out
    assert not (mine.parent / "results").exists()


# servers

MODEL = "ssmax-bible-2m"


@pytest.fixture(scope="module")
def pair():
    return ssmax_eval.load_model(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def ours(pair, tmp_path_factory):
    """Return what our own reader scores, by scoring, and the losses."""
    pytest.importorskip("openai")
    out = tmp_path_factory.mktemp("ours")
    found = {
        scoring: ssmax_eval.needle({"ours": pair}, **SMALL, scoring=scoring, output_path=out)
        for scoring in ("forced", "generate")
    }
    return found | {"loss": ssmax_eval.loss({"ours": pair}, **LOSS, output_path=out)}


LOSS = {"context_length": 128, "documents": 2, "window": 32}
SAME = ["sample", "prompt_sha256", "correct", "first_correct", "expected", "expected_tokens", "predicted_tokens"]


@pytest.mark.parametrize(("ids", "strict"), [(True, False), (False, False), (True, True)])
def test_a_server_that_echoes_scores_as_one_forward_does(ids, strict, pair, ours, tmp_path):
    """Verdicts, first tokens, nll, margins and losses are our own reader's, of the same weights: all rows."""
    with serving(Served(*pair, ids=ids, strict=strict)) as url:
        how = {"tokenizer": MODEL, "output_path": tmp_path}
        rows = ssmax_eval.needle({"s": f"{url}#tiny"}, **SMALL, **how)
        losses = ssmax_eval.loss({"s": f"{url}#tiny"}, **LOSS, **how)
    pd.testing.assert_frame_equal(rows[SAME], ours["forced"][SAME])
    for name in ("answer_nll", "margin"):
        np.testing.assert_allclose(rows[name], ours["forced"][name], atol=2e-4)
    np.testing.assert_allclose(losses["nll_sum"], ours["loss"]["nll_sum"], atol=2e-3)
    np.testing.assert_allclose(losses["nll_sum_near"], ours["loss"]["nll_sum_near"], atol=2e-3)
    record = find_runs(tmp_path / "needle")[0].record()
    assert record["preflight"]["prompts_as"] == ("token ids" if ids else "text")
    assert record["preflight"]["penalties"] == ("the server's own, if it has any" if strict else "put out")
    assert record["preflight"]["length_proved_by"] == "the tokens that the server gives back of each prompt"
    assert record["model"]["foreign"]["url"] == url


@pytest.mark.parametrize(
    ("echo", "why"), [("none", "no log-probabilities"), ("late", "do not agree with what it writes")]
)
def test_a_server_without_log_probabilities_or_with_wrong_ones_writes(echo, why, pair, ours, tmp_path, caplog):
    """What it writes at temperature 0 has our generation's verdicts; llama-cpp-python numbers its tokens one late."""
    with serving(Served(*pair, echo=echo)) as url:
        rows = ssmax_eval.needle(f"{url}#tiny", tokenizer=MODEL, **SMALL, output_path=tmp_path)
        assert why in caplog.text
        with pytest.raises(UserError, match=why):
            ssmax_eval.loss(f"{url}#tiny", tokenizer=MODEL, **LOSS, output_path=tmp_path)
    for name in ("sample", "correct", "predicted", "scoring", "prompt_sha256"):
        assert list(rows[name]) == list(ours["generate"][name])


@pytest.mark.parametrize("scoring", ["forced", "generate"])
def test_a_server_that_cuts_prompts_scores_none_of_them(scoring, pair, tmp_path):
    with serving(Served(*pair, cut=120)) as url:
        rows = ssmax_eval.needle({"s": f"{url}#tiny"}, tokenizer=MODEL, **SMALL, scoring=scoring, output_path=tmp_path)
    long = rows["context_length"] == 160
    assert rows["error"][long].str.startswith("the server read 120 tokens of 1").all()
    assert rows["correct"][long].isna().all()
    assert rows["error"][~long].isna().all()


def test_a_server_that_does_not_count_is_told_of(pair, tmp_path):
    with serving(Served(*pair, usage=False, echo="none")) as url:
        ssmax_eval.needle(f"{url}#tiny", tokenizer=MODEL, **SMALL, output_path=tmp_path)
    assert find_runs(tmp_path)[0].record()["preflight"]["length_proved_by"] == "nothing: the server does not count"


def test_a_server_that_fails_is_asked_again_by_the_same_command(pair, tmp_path, monkeypatch, ours):
    """The client tries twice more; what fails still has a reason, without the key, and no score; then it alone is asked again."""
    monkeypatch.setenv("OPENAI_API_KEY", "sesame-opens")
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *_, **__: 0.0)
    served = Served(*pair)
    served.fails, served.said = 3 * 2, "out of\norder, key sesame-opens"
    with serving(served) as url:
        how = {"tokenizer": MODEL, **SMALL, "output_path": tmp_path}
        rows = ssmax_eval.needle({"s": f"{url}#tiny"}, **how)
        served.fails = 0
        assert rows["error"].notna().sum() == 2
        assert set(rows["error"].dropna()) == {"the server answered 500: out of order, key ***"}
        assert rows["correct"][rows["error"].notna()].isna().all()
        served.asked = 0
        rows = ssmax_eval.needle({"s": f"{url}#tiny"}, **how)
        assert served.asked == 2 + 2  # and what it gives
    assert list(rows["correct"]) == list(ours["forced"]["correct"])
    assert served.keys == {"Bearer sesame-opens"}
    assert not any(b"sesame" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_server_that_is_busy_is_not_taken_for_one_that_gives_less(pair, tmp_path):
    served = Served(*pair)
    served.busy = True
    with serving(served) as url, pytest.raises(UserError, match="503: loading; the same command asks again"):
        ssmax_eval.needle(f"{url}#tiny", tokenizer=MODEL, **SMALL, output_path=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_prompts_of_a_batch_are_asked_together(pair, tmp_path, ours):
    with serving(Served(*pair)) as url:
        rows = ssmax_eval.needle({"s": f"{url}#tiny"}, tokenizer=MODEL, **SMALL, batch_size=3, output_path=tmp_path)
    assert list(rows["correct"]) == list(ours["forced"]["correct"])


def test_a_server_that_is_not_there_or_has_another_model(pair, capsys, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.chdir(tmp_path)
    with serving(Served(*pair)) as url:
        words = ("needle", "--tokenizer", MODEL, *GRID, "--model")
        code, _, err = call(capsys, *words, f"{url}#huge")
        assert (code, err.strip()) == (
            2,
            f"ssmax-eval: error: model {url}#huge: the server has no such model; it has tiny",
        )
        code, _, err = call(capsys, *words, f"{url}/v2#tiny")
        assert (code, err.strip()) == (2, f"ssmax-eval: error: model {url}/v2#tiny: the server answered 404: Not Found")
        assert call(capsys, *words, f"{url}#tiny")[0] == 0
    code, _, err = call(capsys, *words, f"{url}#tiny")
    assert code == 2
    assert "cannot be reached" in err


def test_without_the_client_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match="pip install openai"):
        ssmax_eval.needle("http://127.0.0.1:9/v1#m", tokenizer=MODEL, **SMALL, output_path=tmp_path)
