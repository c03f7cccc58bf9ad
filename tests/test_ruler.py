"""RULER's tasks: exact lengths, what stands in a prompt, when one forward settles a score, and what the scores add up to."""

import json
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_cli import call
from tiny import build
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.trainers import WordPieceTrainer
from transformers import PreTrainedTokenizerFast

import ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.data.chat import Chat
from ssmax_eval.data.haystacks import haystack
from ssmax_eval.data.prose import prose
from ssmax_eval.data.ruler.drawn import beginning, coins
from ssmax_eval.data.ruler.prompts import ruler_prompt
from ssmax_eval.data.ruler.tasks import COMMON, FWE, TASKS, task_named
from ssmax_eval.errors import UserError
from ssmax_eval.probes.ruler.credit import share_found
from ssmax_eval.probes.ruler.probe import RulerProbe, scored
from ssmax_eval.probes.ruler.sections.scores import SECTION
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.report.context import Context
from ssmax_eval.store import run_id_of

PROSE = haystack("text", any_script=True)
LENGTH = 2500
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"


def prompt_of(tokenizer, name, length=LENGTH, trial=0, chat=None):
    return ruler_prompt(tokenizer, TASKS[name], PROSE, length, f"0/{name}/{length}/{trial}", f"0/{trial}", chat)


def asked_text(tokenizer, prompt):
    ids = prompt.ids[: -prompt.answer_length]
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_trap_14_every_prompt_has_its_length_with_any_tokenizer(any_tokenizer):
    for name, task in TASKS.items():
        for length in (LENGTH, LENGTH + 1):
            prompt = prompt_of(any_tokenizer, name, length)
            asked = len(prompt.ids) - prompt.answer_length
            assert asked + task.to_write == length, name
            assert 0 < prompt.answer_length <= task.to_write
            text = asked_text(any_tokenizer, prompt)
            again = any_tokenizer(text.lstrip("\n").removeprefix("<s>")).input_ids
            assert again == prompt.ids[:asked] or text.startswith(("\n", "<s>\n")), name  # filled by empty lines
            at = text.rindex("\nQuestion" if "ruler" in name else "\nWhat")
            before = any_tokenizer.decode(prompt.ids[: prompt.question_start], clean_up_tokenization_spaces=False)
            assert abs(len(before) - at) <= 1
            if task.haystack != "list":
                said = f"{text} {' ' * (name == 'ruler_vt')}{prompt.expected}"
                assert prompt.ids[asked:] == any_tokenizer(said).input_ids[-prompt.answer_length :]


def test_a_prompt_has_its_length_where_a_tokenizer_drops_line_ends():
    """As BERT's does: no empty line fills up what is missing."""
    words = WordPiece(unk_token="[UNK]")
    base = Tokenizer(words)
    base.normalizer, base.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    known = [next(told) for told in [prose(random.Random(0))] for _ in range(500)]
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789-:.,?"]
    base.train_from_iterator(
        known,
        WordPieceTrainer(
            vocab_size=600, special_tokens=["[PAD]", "[UNK]"], initial_alphabet=letters, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, unk_token="[UNK]", pad_token="[PAD]")
    assert tokenizer("\n").input_ids == []
    for name in ("ruler_fwe", "niah_multikey_3"):
        for length in range(1000, 1024):
            prompt = prompt_of(tokenizer, name, length)
            assert len(prompt.ids) - prompt.answer_length + TASKS[name].to_write == length


def test_a_chats_template_counts_in_the_length(tokenizer):
    for name, task in TASKS.items():
        prompt = prompt_of(tokenizer, name, chat=Chat(text=TEMPLATE, name="t"))
        assert len(prompt.ids) - prompt.answer_length + task.to_write == LENGTH
        text = asked_text(tokenizer, prompt)
        assert text.lstrip("\n").startswith("<user> ")
        assert re.search(r"\?|above\.\n<assistant> (The|Answer:)", text)
        assert prompt.chat.startswith("chat t ")


def test_what_is_asked_for_stands_in_the_prompt_and_nowhere_else(tokenizer):
    for name in (each for each in TASKS if each.startswith("niah")):
        task, prompt = TASKS[name], prompt_of(tokenizer, name)
        text = asked_text(tokenizer, prompt)
        needles = re.findall(r"One of the special magic (\w+) for (\S+) is: (\S+)\.", text)
        told = {value: key for _, key, value in needles}
        assert len(told) == len(needles)
        asked = {told[each] for each in prompt.references}
        assert len(prompt.references) == task.answers
        assert len(asked) == task.asked
        assert all(prompt.question.count(key) == 2 for key in asked)
        assert Counter(key for _, key, _ in needles if key in asked) == Counter(dict.fromkeys(asked, task.per_key))
        if task.haystack != "needles":
            assert len(needles) == task.needles * task.per_key


def test_variables_of_a_chain_are_told_in_order(tokenizer):
    text = asked_text(tokenizer, prompt := prompt_of(tokenizer, "ruler_vt"))
    example, main = text.split("\n\n\n\n")
    for part, references in ((example, example.split()[-5:]), (main, list(prompt.references))):
        chain = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", part)
        assert [new for new, _ in chain] == references
        assert [old for _, old in chain] == [re.search(r"value (\d+) in", part)[1], *references[:-1]]


@pytest.mark.parametrize("length", [LENGTH, 5000])
def test_common_and_frequent_words_stand_out(tokenizer, length):
    prompt = prompt_of(tokenizer, "ruler_cwe", length)
    example, main = asked_text(tokenizer, prompt).split("in the list are:")[:2]
    for part, times, others in (
        (example, *((3, 1) if length < 4096 else (10, 3))),
        (main, *((6, 1) if length < 4096 else (30, 3))),
    ):
        entries = re.findall(r"(\d+)\. (\S+)", part.split("most often.\n")[-1])
        assert [int(number) for number, _ in entries] == [*range(1, len(entries) + 1)]
        counts = Counter(word for _, word in entries)
        assert [count for _, count in counts.most_common(COMMON + 1)] == [times] * COMMON + [others]
    assert {word for word, _ in counts.most_common(COMMON)} == {*prompt.references}
    prompt = prompt_of(tokenizer, "ruler_fwe", length)
    coded = asked_text(tokenizer, prompt).split(FWE.split("{context}")[0])[1].split("\n")[0]
    ((noise, _), *rest) = Counter(coded.split()).most_common(5)
    assert noise == "..."
    assert [word for word, _ in rest[:3]] == list(prompt.references)
    assert len({count for _, count in rest}) == 4


def test_a_trials_prose_begins_at_one_place_for_all_tasks_and_lengths(tokenizer):
    starts = set()
    for name, length in (("niah_single_2", LENGTH), ("niah_multivalue", LENGTH), ("niah_single_2", 3000)):
        text = asked_text(tokenizer, prompt_of(tokenizer, name, length)).split("afterwards.\n")[1]
        starts.add(re.sub(r"One of the special magic \w+ for \S+ is: \S+\. ", "", text)[:120])
    assert len(starts) == 1
    one, other = (prompt_of(tokenizer, "niah_single_2", trial=trial) for trial in (0, 1))
    assert one.ids != other.ids
    assert one == prompt_of(tokenizer, "niah_single_2")


def test_beginnings_and_coins():
    def words(text):
        return len(text.split())

    assert beginning("a b c d", 2, words) == "a b"
    assert beginning("abc def", 5, len) == "abc d"  # between words only three would stand
    assert beginning("abc", 0, len) == ""
    assert sorted(coins(15, {4, 7, 8})) == [7, 8]
    assert coins(5, {4, 7}) is None
    assert coins(0, {4}) == []


def test_names_of_lm_eval_and_of_ruler():
    assert task_named("vt") == task_named("ruler_vt") == TASKS["ruler_vt"]
    assert task_named("ruler_niah_single_1").name == "niah_single_1"
    with pytest.raises(UserError, match=r"task 'niah_single_4': allowed are .*; did you mean niah_single"):
        RulerProbe(tasks=("niah_single_4",))


def test_credit_is_the_share_found():
    assert share_found("  8106422, and 55\x00", ["8106422", "55", "7", "8"]) == 0.75
    assert share_found("ABC\x01def", ["abc", "c\nd"]) == 1
    assert share_found("", ["a"]) == 0


def test_one_forward_settles_what_greedy_decoding_writes(tokenizer):
    """Whatever the model writes, taken for the answer, is settled; one token off, it is not, and is written."""
    reader = TransformersReader(build("Llama", vocab_size=1024, max_position_embeddings=1024), tokenizer)
    prompt = prompt_of(tokenizer, "niah_single_1", 700)
    (told,) = scored(None, reader.generate, [prompt])
    ids = prompt.ids[: -prompt.answer_length]
    written = tokenizer(told.predicted, add_special_tokens=False).input_ids[:20]
    for i in range(20):  # token by token, as greedy decoding does, and without it
        logits = reader.model(torch.tensor([[*ids, *written[:i]]])).logits
        written[i] = int(logits[0, -1].argmax())
    text = tokenizer.decode(written)
    assert told.predicted.startswith(text)
    right = replace(prompt, ids=[*ids, *written], answer_length=len(written), references=(text.strip(),))
    off = replace(right, ids=[*right.ids[:-1], (right.ids[-1] + 1) % 1000 + 5])

    def never(prompts):
        raise AssertionError("nothing is left to write")

    (settled,) = scored(reader.answers, never, [right])
    assert settled.settled
    assert settled.credit == 1
    assert settled.predicted == text
    both = scored(reader.answers, reader.generate, [off, right])
    assert [each.settled for each in both] == [False, True]
    assert [each.credit for each in both] == [1, 1]
    assert both[0].answer_nll > both[1].answer_nll


def test_what_fails_has_no_score(tokenizer):
    prompts = [prompt_of(tokenizer, "niah_single_1", 700, trial) for trial in (0, 1)]

    def force(prompts):
        return [{"predicted": "x", "correct": False, "answer_nll": 3.0, "error": None}] * len(prompts)

    def write(prompts):
        return [{"predicted": None, "error": "out of memory"}, {"predicted": prompts[1].references[0], "error": None}]

    failed, right = scored(force, write, prompts)
    assert (failed.credit, failed.settled, failed.error, failed.answer_nll) == (None, None, "out of memory", 3.0)
    assert (right.credit, right.settled, right.error) == (1.0, False, None)


def rows_of(credits, series="m", haystack="text", seed=0):
    """Return rows of scores by (task, length), a trial each."""
    return pd.DataFrame(
        {
            "probe": "ruler", "series": series, "haystack": haystack, "task": task, "context_length": length, "seed": seed,
            "trial": trial, "credit": credit, "prompt_tokens": 1, "prompt_sha256": f"{seed}{task}{length}{trial}",
            "haystack_start": None, "haystack_sentences": 0, "question": "What?", "references": ["7"], "predicted": "<b>8",
        }
        for (task, length), each in credits.items()
        for trial, credit in enumerate(each)
    )  # fmt: skip


def test_means_and_effective_lengths():
    credits = {
        ("a", 1024): [1.0] * 8, ("b", 1024): [0.5] * 8, ("a", 2048): [1, 1, 1, 1, 0, 0, 0, 0], ("b", 2048): [1.0] * 7 + [np.nan],
        ("a", 4096): [0.0] * 8, ("b", 4096): [0.25] * 8,
    }  # fmt: skip
    rows = rows_of(credits)
    scores = statistics.ruler_scores(rows).set_index(["task", "context_length"])
    assert scores.loc[("b", 2048), ["scored", "failed", "score"]].tolist() == [7, 1, 1.0]
    means = statistics.ruler_means(rows)
    assert means["score"].tolist() == [0.75, 0.75, 0.125]  # each task with one weight, though one prompt of b failed
    assert ((means["low"] < means["score"]) & (means["score"] < means["high"])).all()
    reach = statistics.ruler_lengths(rows).set_index("against")
    assert np.isnan(reach.loc["threshold", "effective_length"])
    assert reach.loc["own", ["effective_length", "beyond", "least"]].tolist() == [2048.0, False, 0.85 * 0.75]
    twice = pd.concat([rows, rows.assign(run_id="again"), rows_of(credits, haystack="bible")])
    assert statistics.ruler_means(twice)[means.columns].query("haystack == 'text'").reset_index(drop=True).equals(means)
    good = statistics.ruler_lengths(rows_of({("a", 1024): [1.0] * 9 + [0.0], ("a", 2048): [1.0] * 9 + [0.5]}))
    assert good["effective_length"].tolist() == [2048.0, 2048.0]
    assert good["beyond"].tolist() == [True, True]
    few = statistics.ruler_lengths(rows_of({("a", 1024): [1.0] * 4}))
    assert few["low"].isna().all()
    assert few["high_beyond"].all()
    with pytest.raises(UserError, match="no column 'prompt_tokens'"):
        statistics.ruler_means(rows.drop(columns="prompt_tokens"))


def test_the_page_shows_series_side_by_side():
    """Means are over the task that has a score at both lengths: the other is missing at the longer one."""
    scored = rows_of(
        {("niah_single_1", 1024): [1.0] * 6, ("ruler_vt", 1024): [0.75] * 6, ("ruler_vt", 2048): [0.5] * 6}
    )
    rows = pd.concat([scored, rows_of({("ruler_vt", 2048): [np.nan]}, "n")])
    found = SECTION.numbers(rows, Context())
    *tables, over, said = SECTION.tables(found)
    assert over.startswith("Means and effective lengths are over 1 of 2 tasks: those that have a score at every length")
    assert [table.title for table in tables] == [
        "RULER: m, 6 prompts a task and length; in brackets the 95% interval",
        "RULER: n, 1 prompt a task and length; in brackets the 95% interval",
        "RULER, mean over tasks", "effective context length of RULER",
    ]  # fmt: skip
    assert [*tables[0].lines] == [
        ["niah_single_1", "1.00 (0.61 to 1.00)", ""],
        ["ruler_vt", "0.75 (0.36 to 0.94)", "0.50 (0.19 to 0.81)"],
        ["mean", *tables[0].lines[2][1:]],
    ]
    assert [cell[:4] for cell in tables[0].lines[2][1:]] == ["0.75", "0.50"]
    assert [*tables[1].lines] == [["ruler_vt", "failed"], ["mean", ""]]
    assert "13 tasks" in said
    assert "Over 1 task of RULER, m scores 0.75 at 1,024 tokens, 0.50 at 2,048" in str(SECTION.lead(found, Context()))
    page = SECTION.page(found, Context())
    assert "<td>failed</td>" in page
    assert page.count("&lt;b&gt;8") == 3 + 3 + 3 + 1  # what was written, of each task and length three prompts at most


def test_no_mean_is_told_of_unlike_tasks():
    rows = pd.concat([rows_of({("a", 1024): [1.0] * 6}), rows_of({("b", 1024): [0.5] * 6}, "n")])
    assert statistics.ruler_means(rows).empty
    assert statistics.ruler_lengths(rows).empty
    *tables, none, _ = SECTION.tables(SECTION.numbers(rows, Context()))
    assert none == "No task has a score at every length of every series, so no mean over tasks is told."
    assert [table.lines[-1] for table in tables] == [["mean", ""], ["mean", ""]]
    beside = pd.concat([rows, rows_of({("a", 1024): [0.25] * 6, ("b", 1024): [1.0] * 6}, haystack="bible")])
    assert statistics.ruler_means(beside)["haystack"].tolist() == ["bible"]


def test_the_intervals_hold_the_mean():
    """Of simulated trials: two tasks whose prompts share what their trial has in common."""
    rng, held = random.Random(0), 0
    for _ in range(200):
        ease = [rng.random() < 0.5 for _ in range(20)]
        found = {(task, 1024): [float(rng.random() < (0.8 if easy else 0.4)) for easy in ease] for task in "ab"}
        (line,) = statistics.ruler_means(rows_of(found)).to_dict("records")
        held += line["low"] <= 0.6 <= line["high"]
    assert held >= 182  # of 95%, two standard errors below


SMALL = ("--tasks", "niah_single_1,fwe", "--context-lengths", "720,800", "--trials", "2")


def test_the_command_its_rows_its_page_and_again(capsys, checkpoint, tmp_path):
    arguments = ("ruler", "--model", checkpoint, *SMALL, "--output-path", tmp_path)
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert re.search(r"niah_single_1 +0\.00 \(0\.00 to 0\.66\) +0\.00 \(0\.00 to 0\.66\)", out)
    assert "at least 85.6%" in out
    rows = ssmax_eval.load_results(tmp_path / "ruler")
    assert len(rows) == 8
    assert set(rows["task"]) == {"niah_single_1", "ruler_fwe"}
    assert (rows["context_length"] - rows["prompt_tokens"]).groupby(rows["task"]).unique().map(list).to_dict() == {
        "niah_single_1": [128],
        "ruler_fwe": [50],
    }
    assert rows["credit"].eq(0).all()
    assert rows["answer_nll"].notna().groupby(rows["task"]).all().to_dict() == {
        "niah_single_1": True,
        "ruler_fwe": False,
    }
    page = next((tmp_path / "reports").glob("ruler-*.html")).read_text()
    assert "<h1>RULER</h1>" in page
    assert "Over 2 tasks of RULER, tiny-llama scores 0.00 at 720 tokens, 0.00 at 800." in page
    before = next((tmp_path / "ruler").glob("*/rows.jsonl")).read_bytes()
    code, out, _ = call(capsys, *arguments, "--json", "--no-report")
    found = json.loads(out)
    assert {"ruler", "ruler_means", "ruler_effective_lengths"} <= {*found}
    assert next((tmp_path / "ruler").glob("*/rows.jsonl")).read_bytes() == before
    code, out, _ = call(capsys, *arguments, "--scoring", "generate", "--no-report")
    again = ssmax_eval.load_results(tmp_path / "ruler").query("scoring == 'generate'")
    assert again["predicted"].tolist() == rows["predicted"].tolist()


def test_it_is_no_part_of_run_and_its_mistakes_are_one_line(capsys, checkpoint, tmp_path):
    assert "--tasks" not in call(capsys, "run", "--help")[1]
    for given, says in (
        (("--tasks", "niah"), "task 'niah': allowed are niah_single_1"),
        (
            ("--tasks", "vt", "--context-lengths", "300"),
            "context length 300: shorter than task ruler_vt is with this tokenizer",
        ),
        (("--trials", "0"), "trials 0: allowed are 1 to"),
        (("--scoring", "f1"), "scoring 'f1': allowed are forced or generate"),
    ):
        code, _, err = call(capsys, "ruler", "--model", checkpoint, *given, "--output-path", tmp_path)
        assert code == 2
        assert says in err
    assert not (tmp_path / "ruler").exists()


def test_a_function_is_asked_too(tokenizer):
    """It has the instruction and the context apart from the question, and answers in text."""
    seen = []

    def answer(context, question):
        seen.append((context, question))
        return " ".join(re.findall(r"is: (\S+)\.", context))

    from ssmax_eval.models.foreign import Counting, Function
    from ssmax_eval.readers.function import FunctionReader

    reader = FunctionReader(Function(answer, "answer", Counting(tokenizer, "tiny", "test"), None))
    probe = RulerProbe(tasks=("niah_multiquery",), context_lengths=(LENGTH,), trials=1)
    assert probe.given(reader.gives).scoring == "generate"
    ((row,),) = probe.given(reader.gives)(reader)
    assert row["credit"] == 1
    context, question = seen[0]
    assert context.startswith("Some special magic numbers are hidden")
    assert question.startswith("What are all the special magic numbers for ")


def test_a_length_that_some_trial_is_too_long_for_is_refused_before_any(tokenizer):
    """Trials differ in their sentences and keys: where the check says nothing, each of their prompts can be made."""

    def refusal(length):
        probe = RulerProbe(("niah_single_2",), (length,), 5, haystack="bible")
        try:
            probe.check(None, tokenizer)
        except UserError as error:
            return int(str(error).rsplit(" ", 1)[1])
        assert len([probe.prompt(tokenizer, sample) for sample in probe.plan()]) == 5
        return 0

    told = refusal(150)
    found = [refusal(length) for length in range(told - 20, told + 50, 10)]
    assert all(length > 150 for length in found if length)
    assert 0 in found


def test_what_is_never_found_has_no_length_and_no_interval():
    credits = {("niah_single_1", length): [0.0] * 8 for length in (100, 200, 400)}
    line = statistics.ruler_lengths(rows_of(credits)).set_index("against").loc["own"]
    assert np.isnan([line["effective_length"], line["low"], line["high"]]).all()


def test_trap_15_rulers_every_parameter_is_part_of_the_run():
    plain = RulerProbe(("niah_single_1",), (512,), 2)
    changes = [
        {"tasks": ("ruler_vt",)}, {"context_lengths": (640,)}, {"trials": 3}, {"haystack": "bible"}, {"scoring": "generate"},
        {"seed": 1}, {"limit": 1}, {"limit_tokens": 600}, {"chat": Chat(text=TEMPLATE, name="t")},
    ]  # fmt: skip
    ids = {run_id_of(each.parameters()) for each in [plain, *(replace(plain, **change) for change in changes)]}
    assert len(ids) == len(changes) + 1
    assert run_id_of(replace(plain, chunk=7).parameters()) == run_id_of(plain.parameters())
