"""A needle of one's own: slots, files, every script, metrics, and the same verdicts as a task of ours in the same words."""

import random
import re
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

import ssmax_eval
from ssmax_eval.data.haystacks import haystack
from ssmax_eval.data.needle_files import NeedleFile, made, own_needle, read, ready_names
from ssmax_eval.data.needles import Needle
from ssmax_eval.data.own import says
from ssmax_eval.data.prompts import assemble
from ssmax_eval.data.unknown import refuse_unknown
from ssmax_eval.errors import UserError
from ssmax_eval.probes.needle.asked import parameters_of
from ssmax_eval.probes.needle.credit import contains, f1, words
from ssmax_eval.probes.needle.options import GridOptions
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.probes.needle.sections.prompts import payload
from ssmax_eval.readers.answers import EXTRA_GENERATED_TOKENS
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.statistics import Thresholds, ceilings, task_name, with_series

HERE = Path(__file__).parent
TEXT = haystack("text", any_script=True)


TOLD = {"needle": "Ada is in the attic.", "question": "Where is Ada?", "answer": "in the attic"}


def laid(tokenizer, needle, length, depth, text=TEXT, **options):
    return assemble(tokenizer, needle, text, length, depth, f"{length}/{depth}", haystack_seed="trial", **options)


@pytest.mark.parametrize("name", ready_names())
def test_ready_needles_in_exactly_l_tokens_with_true_spans(tokenizer, name):
    """Chinese, Hindi and Arabic too, with a tokenizer that takes their characters apart."""
    needle = read(name)
    refuse_unknown(tokenizer, needle)
    for length, depth in ((900, 0), (1001, 50), (900, 100)):
        prompt = laid(tokenizer, needle, length, depth, haystack(str(HERE / "german.txt"), True))
        assert len(prompt.ids) == length
        decode = tokenizer.decode
        assert decode(prompt.ids[prompt.needle_start : prompt.needle_end]).strip() == prompt.needle
        assert decode(prompt.ids[prompt.value_start : prompt.value_end]).strip() == prompt.expected
        assert decode(prompt.ids[-prompt.answer_length :]).strip() == prompt.expected
        assert decode(prompt.ids[prompt.question_start :]).strip().startswith(prompt.question)
        assert tokenizer(decode(prompt.ids)).input_ids == prompt.ids
        assert prompt.values == ((0, prompt.answer_length),)


def test_ready_files_name_themselves_in_the_help():
    told = next(each for each in GridOptions.__annotations__["needle_file"].__metadata__ if hasattr(each, "help")).help
    assert told == f"A needle from YAML, or a ready one: {', '.join(ready_names())}."


@pytest.mark.parametrize("name", ["landmark", "profession"])
def test_needles_of_another_wording_share_no_word_with_their_question(name):
    """After NoLiMa: what a model has to know stands between them, and the short prompt alone is the ceiling."""
    needle = read(name)
    assert needle.is_indirect
    for fact in needle.facts:
        for question in needle.questions:
            for here, there in needle.keys:
                said = {*words(fact.replace("{key}", here).replace("{value}", ""))}
                assert not said & {*words(question.replace("{key}", there))}, (here, there)
    probe = NeedleProbe(context_lengths=(128,), depth_percents=(50,), trials=2, needle=needle)
    assert probe.controls == ("needle-only",)
    assert [sample.control for sample in probe.plan()] == [None, None, "needle-only", "needle-only"]


def test_distractors_are_the_trials_and_never_answer(tokenizer):
    needle = read("landmark")
    seen = set()
    for depth in range(0, 101, 10):
        prompt = laid(tokenizer, needle, 500, depth)
        text = tokenizer.decode(prompt.ids[: prompt.question_start])
        others = frozenset(re.findall(r"\w+ lives right beside [^.]*\.", text)) - {prompt.needle}
        assert len(others) == 2
        assert not any(prompt.expected in each for each in others)
        seen.add(others)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"needle": "The code is 5."}, "no question with it; add --question TEXT"),
        ({"question": "Which code?"}, "no needle with it; add --needle TEXT"),
        ({"needle": "The code is 5.", "question": "Which?"}, "no {value} in it; add --answer TEXT"),
        ({"needle": "The code is 5.", "question": "Which?", "answer": "{value}"}, "{value} is missing"),
        (
            {"needle": "It is {value}.", "question": "The code of {key}?"},
            "{key} is missing, and the question is about it",
        ),
        ({"needle": "{city} is {value}.", "question": "Which?"}, "slot {city}: allowed: {key} and {value}"),
        ({"needle": "It is {value}.", "question": "Is it {value}?"}, "which would give the answer away"),
        ({"needle": "The sky is blue.", "question": "Its colour?", "answer": "red"}, "does not hold it"),
        ({"needle": "The sky is blue.", "question": "Is it blue?", "answer": "blue"}, "it holds the answer 'blue'"),
        ({"needle": " ", "question": "Which?", "answer": "x"}, "needle '': it is empty"),
        ({"file": "germn"}, "did you mean german?"),
        ({"file": "german", "needle": "It is 5."}, "the needle file 'german' says it"),
    ],
)
def test_slots_and_their_errors(given, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        own_needle(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("needle: [", "not YAML"),
        ("- a\n- b\n", "it holds no map"),
        ("needle: a {value}\n", "question is missing"),
        ("needle: a {value}\nquestion: b\nkey: [c]\n", "unknown field `key`"),
        ("needle: a {value}\nquestion: b\nkeys: [c]\n", "keys are given, and {key} is not in it"),
        ("needle: a {value}\nquestion: b\nvalues: [c, c]\n", "two are the same"),
        ("needle: a {value}\nquestion: b\nvalues: numbr\n", "did you mean number?"),
        ("needle: '{key} is {value}'\nquestion: '{key}?'\nkeys: [a]\ndistractors: ['{key} is {value}']\n", "too few"),
        ("needle: the sky is blue\nquestion: b\nanswer: grey\n", "implied: true"),
        ("needle: a {value}\nquestion: b\nvalues: {x: y}\n", "answer 'y': needle 'a x' does not hold it"),
        ("\u00e4".encode("latin-1"), "not UTF-8"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read(str(file))
    assert "\n" not in str(error.value)


def test_an_answer_may_be_implied_where_the_file_says_so(tmp_path, tokenizer):
    file = tmp_path / "grade.yaml"
    file.write_text(
        "needle: Ada won {value}.\nquestion: Which metal did Ada get?\nimplied: true\nvalues: {the race: gold, second place: silver}\n"
    )
    needle = read(str(file))
    assert needle.is_indirect
    prompt = laid(tokenizer, needle, 200, 50)
    assert (prompt.expected, prompt.needle) in (("gold", "Ada won the race."), ("silver", "Ada won second place."))
    shown = tokenizer.decode(prompt.ids[prompt.value_start : prompt.value_end]).strip()
    assert shown == prompt.needle.removeprefix("Ada won ").rstrip(".")
    assert needle.name == read(str(file)).name
    assert re.fullmatch(r"grade-[0-9a-f]{6}", needle.name)
    file.write_text(file.read_text() + "language: en\n")
    assert read(str(file)).name != needle.name


def test_metrics_by_hand():
    assert words("L'été, 3,5 km!") == ["l", "été", "3", "5", "km"]
    assert words("北京是 Beijing。") == ["北", "京", "是", "beijing"]
    assert words("भोपाल की संख्या") == ["भोपाल", "की", "संख्या"]
    assert contains("It is a RED  apple, he said", "red apple")
    assert not contains("It is 15", "5")
    assert contains("答案是北京。", "北京")
    # 2 of 3 written words are wanted, 2 of 4 wanted ones are written: 2 * 2 / (3 + 4)
    assert f1("gold and silver", "silver, gold, tin, lead") == pytest.approx(4 / 7)
    assert f1("a a b", "a b b") == pytest.approx(2 / 3)  # each word counts as often as in both
    assert f1("nothing", "gold") == 0
    assert f1("", "gold") == 0


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("🍕", "I like 🍕!", "I like 🍣"), ("★", "a ★ it is", "..."), ("❤️", "❤ of course", ""), ("+", "x + y", "x - y"),
        ("C#", "In C#, I think", "In C"), ("C++", "It is C++.", "It is C"), ("50%", "about 50 %", "50 dollars"),
        ("-5", "−5 degrees", "5 degrees"), ("R&D", "the R & D people", "the R people"), ("$5", "It is $5", "5 years"),
    ],
)  # fmt: skip
def test_symbols_of_an_answer_count(answer, right, wrong):
    assert contains(right, answer)
    assert contains(answer, answer)
    assert f1(right, answer) > f1(wrong, answer)
    assert not contains(wrong, answer)


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("5", "5", "See pages 15 to 42"), ("5", " 57 is it", "It is 157"), ("land", "The land.", "In England"),
        ("北京", "是北京。", "是南京"),
    ],
)  # fmt: skip
def test_a_written_answer_stands_as_words_of_its_own_or_at_the_beginning(answer, right, wrong):
    assert says(right, answer)
    assert not says(wrong, answer)


def test_words_that_are_compared_have_room_for_a_sentence():
    """A model that says a sentence first is heard out; one that never ends is told of, in the row and in a note."""
    model, tokenizer = ssmax_eval.load_model("softmax-bible-2m")
    sentence = " And it is so, as I have told you before, that the number which you ask me of is gold"
    said = tokenizer(sentence, add_special_tokens=False).input_ids
    assert len(said) > 1 + EXTRA_GENERATED_TOKENS
    needle = own_needle("The number is gold.", "What is the number?", "gold")
    found = {}
    for name, then in (("ends", tokenizer.eos_token_id), ("never", said[0])):
        probe = NeedleProbe((128,), (50,), 1, needle=needle, scoring="contains")
        written = iter([*said, *[then] * 200])

        class Wordy(type(model)):
            def forward(self, *arguments, written=written, **options):
                out = super().forward(*arguments, **options)
                out.logits[:, -1] = -100
                out.logits[:, -1, next(written)] = 100
                return out

        wordy = Wordy(model.config).eval()
        [[row]] = probe(TransformersReader(wordy, tokenizer))
        assert row["correct"]
        found[name] = row["cut"], probe.note([row]).rpartition("has each")[2].strip("; ")
    assert found["ends"] == (False, "")
    assert found["never"] == (True, "1 of 1 answers ended at the most tokens that are written")


def test_symbols_that_an_answer_has_not_do_not_count():
    """Rows of answers in letters and digits are as they were."""
    assert contains("It costs $50 + 3%, **I think** ★", "50")
    assert words("It costs $50 + 3% ★") == ["it", "costs", "50", "3"]


def test_an_answer_without_words_is_refused_where_words_are_compared():
    needle = own_needle("They said: ...", "What did they say? They said:", "...")
    for scoring in ("contains", "f1"):
        with pytest.raises(
            UserError, match=f"scoring '{scoring}': allowed are forced or generate with answer '\\.\\.\\.'"
        ):
            NeedleProbe((128,), needle=needle, scoring=scoring)
    assert NeedleProbe((128,), needle=needle).scoring == "forced"


def test_the_papers_needle_as_ones_own_is_judged_alike_forced_and_generated(tmp_path):
    """The bundled model knows these words: token by token, by metric and by what it writes it finds the same prompts."""
    said = {
        "needle": "The special magic {key} number is: {value}.",
        "question": "What is the special magic {key} number? The special magic {key} number is:",
    }
    small = {"context_lengths": [160, 1024], "depth_percents": [0, 50], "trials": 2, "output_path": tmp_path}
    rows = {
        scoring: ssmax_eval.needle("softmax-bible-2m", **said, **small, scoring=scoring).set_index("sample")
        for scoring in ("forced", "contains", "f1")
    }
    forced = rows["forced"]
    assert forced["correct"].any()
    assert not forced["correct"].all()
    assert (rows["contains"]["prompt_sha256"] == forced["prompt_sha256"]).all()
    assert rows["contains"]["correct"].tolist() == forced["correct"].tolist()
    for row in rows["f1"].to_dict("records"):
        line = row["predicted"].splitlines()[0]
        assert row["credit"] == pytest.approx(f1(line, row["expected"]))
        assert row["correct"] == (words(line) == words(row["expected"]))
    assert {*forced["task"]} == {own_needle(**said, value="number").name}
    shown = payload("", with_series(rows["forced"].reset_index()), Thresholds())["prompts"]  # on the page
    assert {(prompt[4], prompt[5]) for prompt in shown} == {*zip(forced["needle"], forced["question"], strict=True)}
    assert task_name(rows["forced"]) == f"{forced['task'].iloc[0]}, in generated prose"


def test_what_is_not_asked_for_changes_no_run(tmp_path):
    parameters = NeedleProbe(context_lengths=(96,)).parameters()
    assert not {"chat", "limit_tokens"} & {*parameters}
    assert parameters["needle"] == {"task": "single", "value": "number", "needles": 4} | {"needles": 1}
    assert parameters["controls"] == ()
    assert asdict(Needle("multikey")) == {"task": "multikey", "value": "number", "needles": 4, "ask": "one"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"needle_file": "german", "task": "multikey"}, "asks its own question; leave one of them out"),
        ({"needle_file": "german", "needles": 3}, "as many facts as it has distractors"),
        ({"needle_file": "german", "value": "uuid"}, "says its values"),
        ({"needle_file": "german", "ask": "all"}, "ask 'all': of task multikey"),
        ({**TOLD, "ask": "all"}, "ask 'all': of task multikey"),
        ({**TOLD, "value": "uuid"}, "value 'uuid': needle has no {value}; leave it out"),
        ({**TOLD, "needles": 3}, "as many facts as it has distractors"),
    ],
)
def test_options_beside_ones_own_needle(given, message):
    with pytest.raises(UserError, match=message):
        parameters_of([], GridOptions(context_lengths=(96,), **given))


def test_long_prompts_are_held_against_the_needle_alone(tmp_path):
    """The share of the ceiling, by length, of rows made by hand: 8 of 10 alone; 8, 4 of 10 in the haystack."""

    def row(length, trial, right, control=None):
        return {
            "probe": "needle", "run_id": "a", "sample": f"{control}/{length}/{trial}", "model": "m", "attention": "softmax",
            "attention_swapped": False, "rope": "as trained", "task": "landmark", "value": "text", "needles": 3, "haystack": "text",
            "plan": 2, "control": control, "context_length": length, "depth_percent": None if control else 50.0, "trial": trial,
            "seed": 0, "correct": right, "first_correct": right, "error": None, "prompt_sha256": f"{control}{length}{trial}",
            "haystack_start": None, "haystack_sentences": 9,
        }  # fmt: skip

    rows = [row(40, trial, trial < 8, "needle-only") for trial in range(10)]
    rows += [row(512, trial, trial < 8) for trial in range(10)] + [row(1024, trial, trial < 4) for trial in range(10)]
    found = ceilings(with_series(pd.DataFrame(rows)))
    assert found["context_length"].tolist() == [512, 1024]
    assert found["ceiling"].tolist() == [0.8, 0.8]
    assert found["share"].tolist() == pytest.approx([1, 0.5])
    assert found["holds"].tolist() == [True, False]
    assert (found["low"] <= found["share"]).all()
    assert (found["share"] <= found["high"]).all()
    # the same bootstrap written apart: each trial one weight for all its prompts, half a prompt added on either side of each
    draw = np.random.default_rng(1)
    weights = draw.standard_exponential((20000, 10))
    alone, long = (
        (weights[:, :right].sum(1) + added[:, 0]) / (weights.sum(1) + added.sum(1))
        for right, added in ((8, draw.gamma(0.5, size=(20000, 2))), (4, draw.gamma(0.5, size=(20000, 2))))
    )
    assert [found["low"].iloc[1], found["high"].iloc[1]] == pytest.approx(
        [*np.quantile(long / alone, [0.025, 0.975])], abs=0.03
    )
    assert ceilings(with_series(pd.DataFrame(rows[10:]))).empty


def test_the_file_of_the_documentation_is_one(tmp_path):
    page = (HERE.parent / "docs/probes.md").read_text()
    file = tmp_path / "house.yaml"
    file.write_text(re.search(r"```yaml\n(.*?)```", page, re.S)[1])
    needle = read(str(file))
    assert (len(needle.facts), len(needle.keys), needle.needles, needle.is_indirect) == (2, 3, 2, True)
    named = re.search(r"Ready are (.*?)\.", page, re.S)[1]
    assert sorted(re.findall(r"`(\w+)`", named)) == ready_names()


@pytest.mark.parametrize(
    ("told", "in_front"),
    [
        (
            NeedleFile(
                "On floor {value} lives {key} since 1957.",
                "Where lives {key}? On",
                keys=["Ada", "Bob"],
                values=["5", "7", "9"],
            ),
            " On floor ",
        ),
        (
            NeedleFile(
                "The capital {value} is near {key}.",
                "What is near {key}?",
                keys=["Romania", "Guineaville"],
                values=["Roman", "Guinea"],
            ),
            " The capital ",
        ),
        (NeedleFile("On floor 5 lives Ada since 1957.", "Where lives Ada? On floor", "5"), " On floor "),
        (
            NeedleFile("The {value} {key}.", "Of what is the {key}?", keys=["one", "onyx"], values=["on", "ony"]),
            " The ",
        ),
    ],
)
def test_the_value_is_where_its_slot_is_and_not_where_its_letters_come_again(tokenizer, told, in_front):
    needle = made("own", told, False)
    assert needle.is_told_anew
    assert NeedleProbe((128,), needle=needle).parameters()["needle_format"] == 2
    for trial in range(6):
        for depth in (0, 50):
            prompt = assemble(tokenizer, needle, TEXT, 128, depth, f"{trial}/{depth}", haystack_seed=f"{trial}")
            start, end = prompt.value_start, prompt.value_end
            assert tokenizer.decode(prompt.ids[start:end]).strip() == prompt.expected
            front = tokenizer.decode(prompt.ids[prompt.needle_start : start])
            assert front.strip() == in_front.strip()


def test_no_distractor_answers_the_question(tokenizer):
    """Two keys that are asked for in the same words: the fact of one would be another right answer."""
    told = NeedleFile(
        "{value} lives next to {key}.",
        "Who lives in {key}? In {key} lives",
        keys={"the Eiffel Tower": "Paris", "the Louvre": "Paris", "Big Ben": "London"},
        values=["Ingrid", "Tomas", "Yara", "Olga"],
        distractors=["{value} lives next to {key}."],
    )
    needle, asked = made("own", told, False), set()
    for i in range(200):
        draw = needle.draw_in_trial(random.Random(f"h{i}"), random.Random(f"c{i}"))
        asked.add(draw.question)
        ours = ("Big Ben",) if "London" in draw.question else ("Eiffel", "Louvre")
        assert [any(each in fact for each in ours) for fact in draw.facts] == [True, False]
    assert len(asked) == 2
    assert needle.is_told_anew
    with pytest.raises(UserError, match="two facts would answer one question"):
        made("own", msgspec.structs.replace(told, keys={"the Eiffel Tower": "Paris", "the Louvre": "Paris"}), False)
    assert "needle_format" not in NeedleProbe((128,), needle=read("german")).parameters()


@pytest.mark.parametrize("question", ["密码是不是北京呢？密码是", "京北京北？"])
def test_a_question_that_holds_the_answer_is_refused_in_scripts_without_spaces(question):
    with pytest.raises(UserError, match="it holds the answer '北京'; ask without it"):
        own_needle("密码是北京。", question, "北京")


def test_distractors_without_a_key_need_none():
    told = NeedleFile("Ada is {value}.", "What is Ada? Ada is", values="word", distractors=["Bob is {value}."])
    assert made("own", told, False).needles == 2


def test_a_key_that_a_needle_file_has_twice_is_refused(tmp_path):
    """YAML takes the last one, and the file's own words are lost."""
    file = tmp_path / "own.yaml"
    for text, told in (
        ("needle: 'Ada has {value}.'\nneedle: 'Ada keeps {value}.'\nquestion: What?\n", "line 2: key 'needle'"),
        ("needle: '{key} is.'\nquestion: What?\nanswer: x\nkeys:\n  a: b\n  a: c\n", "line 6: key 'a'"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=f"needle file '{file}': {told} is given twice; give it once"):
            read(str(file))
    file.write_text("needle: 'Floor {value} is it.'\nquestion: Which?\nvalues: [010, 0256]\n")
    assert read(str(file)).values == (("010", "010"), ("0256", "0256"))  # there all is text
