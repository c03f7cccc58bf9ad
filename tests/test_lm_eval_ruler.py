"""RULER's prompts against lm-eval's: its own generators, run on our words, make what ours makes; its metric says what ours says.

wonderwords, whose words it takes, is replaced by our words, and the essays by our prose: what is left is the tasks themselves.
"""

import importlib
import random
import re
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest

from ssmax_eval.data.haystacks import haystack
from ssmax_eval.data.ruler import lists, niah, tracing
from ssmax_eval.data.ruler.drawn import Draws
from ssmax_eval.data.ruler.prompts import Sentences
from ssmax_eval.data.ruler.tasks import CWE_PREFIX, DEPTHS, FWE_PREFIX, HOPS, NOISE, TASKS, VT, numbered
from ssmax_eval.probes.ruler.credit import share_found

pytestmark = pytest.mark.filterwarnings("ignore")
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")
HEX = "[0-9a-f]"
KINDS = {
    "word": r"[a-z-]+-[a-z-]+",
    "number": r"[1-9]\d{6}",
    "uuid": rf"{HEX}{{8}}-{HEX}{{4}}-4{HEX}{{3}}-[89ab]{HEX}{{3}}-{HEX}{{12}}",
}


@pytest.fixture(scope="module")
def ruler():
    """Return the modules of lm-eval's RULER, with our words for wonderwords' and no download."""
    pytest.importorskip("lm_eval")
    nltk = pytest.importorskip("nltk")
    patch = pytest.MonkeyPatch()
    stand_in = ModuleType("wonderwords")
    found = {
        "nouns": niah.KEY_NOUNS,
        "adjectives": niah.KEY_ADJECTIVES,
        "verbs": [],
        "noun": lists.words(),
        "adjective": [],
        "verb": [],
    }
    stand_in.RandomWord = lambda: SimpleNamespace(_categories=found)
    patch.setitem(sys.modules, "wonderwords", stand_in)
    patch.setattr(nltk.data, "find", lambda *names: None)
    names = "common_utils prepare_niah niah_utils vt_utils cwe_utils fwe_utils".split()
    modules = {name: importlib.import_module(f"lm_eval.tasks.ruler.{name}") for name in names}
    patch.setattr(modules["prepare_niah"], "cached_sent_tokenize", lambda text: re.findall(r"[^.]+\.", text.strip()))
    yield SimpleNamespace(**modules)
    patch.undo()
    for name in modules:
        del sys.modules[f"lm_eval.tasks.ruler.{name}"]


def draws(name, length=2048):
    prose = Sentences(haystack("text", any_script=True), "0/prose")
    return Draws(TASKS[name], "0/1", prose, " ", lambda text: len(text.split()), length)


def whole(text):
    return f"{text.before}{text.context}{text.behind}", text.prefix


def asked_by_lm_eval(ruler, name, patch):
    """Return the parameters with which lm-eval makes a needle task, and one sample of it."""
    given = {}

    def taken(hay, **parameters):
        given.update(parameters, haystack=hay)
        return []

    prose = " ".join(draws(name).sentences(60)[:60])
    patch.setattr(ruler.niah_utils, "generate_samples", taken)
    patch.setattr(ruler.niah_utils, "get_tokenizer", lambda name: None)
    patch.setattr(ruler.niah_utils, "download_dataset", list)
    patch.setattr(
        ruler.niah_utils, "get_haystack",
        lambda type_haystack: prose.split(" ") if type_haystack == "essay" else ruler.prepare_niah.get_haystack(type_haystack),
    )  # fmt: skip
    getattr(ruler.niah_utils, name)(max_seq_lengths=[2048], pretrained="x")
    count = lambda text: SimpleNamespace(input_ids=text.split())  # noqa: E731
    (sample,) = ruler.prepare_niah.generate_samples(
        **{**given, "TOKENIZER": count, "num_samples": 1, "max_seq_length": 900}
    )
    return given, sample


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("niah")])
def test_needles_are_lm_evals(ruler, monkeypatch, name):
    random.seed(1)
    task = TASKS[name]
    given, theirs = asked_by_lm_eval(ruler, name, monkeypatch)
    haystacks = {"repeat": "noise", "essay": "text", "needle": "needles"}
    assert haystacks[given["type_haystack"]] == task.haystack
    assert (given["type_needle_k"], given["type_needle_v"]) == (f"{task.keys}s", f"{task.values}s")
    assert given.get("num_needle_q", 1) == task.asked
    assert max(given.get("num_needle_k", 1), task.asked) == task.needles
    assert given.get("num_needle_v", 1) == task.per_key
    assert tuple(ruler.prepare_niah.DEPTHS) == DEPTHS
    ours = niah.Niah(draws(name))
    own, prefix = whole(ours.text(24))
    sides = ((theirs["input"], theirs["gen_prefix"], theirs["outputs"]), (own, prefix, ours.references))
    shapes = []
    for text, ends, references in sides:
        # the same words around the context, the same key in question and prefix
        query = re.search(r"for (.*) mentioned in the provided text\?$", text)[1]
        before, behind, expected = niah.niah_parts(task, query)
        assert (text.startswith(before), text.endswith(behind), ends) == (True, True, expected)
        context = text[len(before) : -len(behind)]
        needles = NEEDLE.findall(context)
        keys = re.split(r", and |, ", query)
        assert Counter(value for _, key, value in needles if key in keys) == Counter(references)
        for kind, key, value in needles:
            assert kind == f"{task.values}s"
            assert re.fullmatch(KINDS[task.keys], key)
            assert re.fullmatch(KINDS[task.values], value)
        left = NEEDLE.sub("", context)
        assert (
            {*left.split("\n")} <= {NOISE, ""}
            if task.haystack != "text"
            else " ".join(left.split()) in " ".join([*" ".join(draws(name).sentences(60)[:60]).split()])
        )
        joined = "\n" if task.haystack != "text" else " "
        assert all(f"{joined}{each}" in f"{joined}{context}" for each in (m[0] for m in NEEDLE.finditer(context)))
        shapes.append((len(keys), len(references), len(needles) if task.haystack != "needles" else "many"))
    assert shapes[0] == shapes[1]
    # in the order of the keys that are asked for
    assert [key for each in ours.references for _, key, value in NEEDLE.findall(own) if value == each] == [
        key for key in re.split(r", and |, ", ours.query) for _ in range(task.per_key)
    ]


class Placed:
    """A generator that gives known places."""

    def __init__(self, places):
        self.sample = lambda among, count: places


def test_variable_tracking_is_lm_evals_to_the_character(ruler):
    random.seed(2)
    for count, letters in ((10, 3), (30, 5)):
        theirs, variables = ruler.vt_utils.generate_input_output(count, 1, HOPS, is_icl=letters == 3)
        found = list(re.finditer(r"VAR [A-Z]+ = (?:VAR [A-Z]+ |\d{5})", theirs))
        assert {len(name) for name in variables} == {letters}
        places = [theirs[: match.start()].count(NOISE) for match in found]
        value = re.search(r"= (\d+)", theirs)[1]
        context = tracing.hidden(Placed(places), [match[0] for match in found], count)
        prefix = tracing.VT_PREFIX.format(count=HOPS + 1, value=value)
        assert theirs == f"{VT.format(context=context, value=value)} {prefix} "
    # and with the example in front, as the task has it
    count = lambda text: SimpleNamespace(input_ids=text.split())  # noqa: E731
    (shown,) = ruler.vt_utils.sys_vartrack_w_noise_random(count, 1, 500, incremental=5)
    (sample,) = ruler.vt_utils.sys_vartrack_w_noise_random(count, 1, 900, icl_example=shown)
    made = tracing.Tracing(draws("ruler_vt"))
    own, prefix = whole(made.text(20))

    def without_draws(text):
        text = re.sub(
            r"VAR [A-Z]{3} ", "VAR abc ", re.sub(r"VAR [A-Z]{5} ", "VAR abcde ", re.sub(r"\d{5}", "12345", text))
        )
        text = re.sub(r"(?<=they are:  )[A-Z ]+(?=\n)", "names", text)
        text = re.sub(r"VAR abc(de)? = (VAR abc(de)? |12345) ", "", text)
        return text.replace("\n There", "\nThere").replace(f"{NOISE}\n ", "").replace(f"{NOISE}\n", "")

    assert without_draws(own) == without_draws(sample["input"])
    assert re.sub(r"\d{5}", "", sample["gen_prefix"]) == re.sub(r"\d{5}", "", prefix)
    assert TASKS["ruler_vt"].to_write == ruler.vt_utils.CONFIG["variable_tracking"]["tokens_to_generate"]


@pytest.mark.parametrize("length", [2048, 8192])
def test_common_words_are_lm_evals_behind_the_example(ruler, length):
    random.seed(3)
    size = 40
    example, theirs, answer = ruler.cwe_utils.generate_input_output(size + 10, length)
    made = lists.Common(draws("ruler_cwe", length))
    own = made.text(size)
    ours = "".join(whole(own)[0].split(made.example)), made.references

    def entries(text):
        return re.findall(r"\d+\. (\S+)", text.split("most often.\n")[1].split("\nQuestion")[0])

    shapes = []
    for text, common in ((theirs.removesuffix(f" {CWE_PREFIX}"), answer), ours):
        words = entries(text)
        assert text == lists.CWE.format(context=numbered(words))
        counts = Counter(words)
        assert {word for word, _ in counts.most_common(10)} == {*common}
        shapes.append(sorted(counts.values()))
    assert shapes[0] == shapes[1]
    # RULER puts the example in front and a line end behind; lm-eval makes it, and leaves it out
    shown = [(Counter(entries(text)), text.split("list are:")[1].split()) for text in (example, made.example)]
    assert sorted(shown[0][0].values()) == sorted(shown[1][0].values())
    assert [[word for word in answers if "." not in word] for _, answers in shown] == [
        [word for word, _ in sorted(counts.most_common(10), key=lambda each: answers.index(each[0]))]
        for counts, answers in shown
    ]
    theirs, ours = (re.sub(r"(?<=\d\. )\S+", "w", text) for text in (example, made.example))
    assert f"{theirs.replace('are:1', 'are: 1')}\n" == ours
    assert TASKS["ruler_cwe"].to_write == ruler.cwe_utils.CONFIG["tokens_to_generate"]


def test_frequent_words_are_lm_evals(ruler):
    random.seed(4)
    length, size = 2048, 300
    count = lambda text: SimpleNamespace(input_ids=[])  # noqa: E731
    theirs, answer, _ = ruler.fwe_utils.generate_input_output(length, count, num_words=size, vocab_size=length // 50)
    made = lists.Frequent(draws("ruler_fwe", length))
    own, prefix = whole(made.text(size))
    shapes = []
    for text, references in ((theirs, answer), (f"{own} {prefix}", made.references)):
        coded = text.split("coded words. ")[1].split("\n")[0]
        assert text == f"{lists.FWE.format(context=coded)} {FWE_PREFIX}"
        counts = Counter(coded.split())
        assert [word for word, _ in counts.most_common(4)] == ["...", *references]
        assert all(re.fullmatch("[a-z]{6}", word) for word in counts if word != "...")
        shapes.append(sorted(counts.values()))
    assert shapes[0] == shapes[1]
    assert TASKS["ruler_fwe"].to_write == ruler.fwe_utils.CONFIG["tokens_to_generate"]


def test_credit_is_string_match_all(ruler):
    rng = random.Random(5)
    pieces = ["8106422", " ABC", "abc", "\x00", "\n", "..", "Word-one", " ", "\t", "1. ", "word", "é"]
    for _ in range(500):
        written = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
        references = [each.strip() or "x" for each in rng.sample(pieces, rng.randint(1, 5))]
        cleaned = ruler.common_utils.postprocess_pred([written])
        assert share_found(written, references) == pytest.approx(
            ruler.common_utils.string_match_all(cleaned, [references])
        )
