"""Depths are what they say in every script: sentence ends of any, else words, else characters; what is off is said."""

import itertools
import random
import re

import pytest
from handmade import handmade
from test_report import page_of, row
from tiny import build

from ssmax_eval.data import needle_files
from ssmax_eval.data.haystacks import Document, haystack
from ssmax_eval.data.needles import Needle
from ssmax_eval.data.prompts import LONG_SENTENCE, assemble
from ssmax_eval.data.sentences import split_sentences
from ssmax_eval.probes.checks import notes
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.transformers import TransformersReader

# made-up texts: words, what stands between two, what ends a sentence, and how many words one has
SCRIPTS = {
    "hindi": ("घर नदी पानी सुबह शाम लोग किताब", " ", "। ", 8),
    "arabic": ("بيت ماء رجل سوق كتاب نهر", " ", "؟ ", 8),
    "chinese": ("天 地 人 山 水 火 木", "", "。", 9),
    "amharic": ("ቤት ውሃ ሰው ገበያ ወንዝ", " ", "። ", 7),
    "burmese": ("အိမ် ရေ လူ ဈေး", "", "။", 8),
    "russian in lower case": ("дом вода книга река утро", " ", ". ", 7),
    "english in lower case": ("harbour quiet lantern copper winter", " ", ". ", 8),
    "english without ends": ("harbour quiet lantern copper winter", " ", " ", 8),
    "thai without spaces": ("น้ำ บ้าน คน ไป มา กิน", "", "", 8),
    "chinese without ends": ("天 地 人 山 水 火 木", "", "", 9),
    "emoji": ("😀 👩‍👩‍👧 🎉 👍🏽", "", "", 5),
}


def text_of(name, size=32_000):
    words, between, end, count = SCRIPTS[name]
    rng, parts = random.Random(name), []
    while sum(map(len, parts)) < size:
        parts.append(between.join(rng.choices(words.split(), k=rng.randint(count - 3, count + 3))) + end)
    return "".join(parts)


@pytest.fixture(scope="module")
def written():
    return handmade()


@pytest.mark.parametrize("name", SCRIPTS)
def test_needles_stand_at_their_depth_in_every_script(name, written):
    """With a tokenizer that knows no such word, so that a sentence may have hundreds of tokens."""
    document = Document(name, text_of(name), any_script=True)
    for length, depth in itertools.product((512, 1500), (25, 50, 75)):
        prompt = assemble(written, Needle(), document, length, depth, f"{length}/{depth}", None, "trial")
        assert len(prompt.ids) == length
        # a sentence of at most LONG_SENTENCE tokens is left whole, however short the prompt; the run says so (below)
        half = 100 * LONG_SENTENCE / 2 / (prompt.question_start - len(written(prompt.needle).input_ids))
        assert prompt.realised_depth_percent == pytest.approx(depth, abs=max(5, half))
        assert length < 1500 or abs(prompt.realised_depth_percent - depth) <= 5
        text = written.decode(prompt.ids)
        assert written(text).input_ids == prompt.ids
        assert "\ufffd" not in text
        before = written.decode(prompt.ids[: prompt.needle_start])
        if SCRIPTS[name][1]:  # what has words is cut between them
            assert set(re.split(r"[ ।؟።.]+", before.strip())) - {""} <= set(SCRIPTS[name][0].split())


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("यह घर है। वह नदी है॥ अंत", ["यह घर है।", "वह नदी है॥", "अंत"]),
        ("هل هذا بيت؟ نعم۔ لا", ["هل هذا بيت؟", "نعم۔", "لا"]),
        ("ቤት ነው። ውሃ ነው፧ ሰው", ["ቤት ነው።", "ውሃ ነው፧", "ሰው"]),
        ("Սա տուն է։ Ջուր", ["Սա տուն է։", "Ջուր"]),
        ("ផ្ទះ។ទឹក។", ["ផ្ទះ။".replace("။", "។"), "ទឹក។"]),
        ("ཁང་པ། ཆུ།", ["ཁང་པ།", "ཆུ།"]),
        ("天空很蓝。”他说：“好！”草", ["天空很蓝。”", "他说：“好！”", "草"]),
        ("a boat. a mill! mr. reed came. it is 3.5 miles.", ["a boat.", "a mill!", "mr. reed came.", "it is 3.5 miles."]),
        ("I saw it, e.g. there. He left. Yes... no. They all.", ["I saw it, e.g. there.", "He left.", "Yes... no.", "They all."]),
        ('Mr. Reed came. "Is it so?" she said. He left.', ["Mr. Reed came.", '"Is it so?" she said.', "He left."]),
    ],
)  # fmt: skip
def test_sentence_ends_of_any_script(text, sentences):
    assert split_sentences(text, any_script=True) == sentences


def test_a_depth_that_is_off_is_said_once(tmp_path, tokenizer):
    """One sentence a prompt: its needles can stand at its start or end only, and the run says so in one line."""
    (tmp_path / "few.txt").write_text(
        "The old harbour was quiet, and the river field was full of rain and stone. " * 400
    )
    probe = NeedleProbe((96,), (0, 40, 100), 2, haystack=str(tmp_path / "few.txt"))
    rows = [row for batch in probe(TransformersReader(build("Llama", vocab_size=1024), tokenizer)) for row in batch]
    off = [row for row in rows if abs(row["realised_depth_percent"] - row["depth_percent"]) > 5]
    said = probe.note(rows)  # which the run says, of all its rows
    assert len(off) == 2
    assert said.count("points from the depth asked") == 1
    assert f"haystack few.txt: {len(off)} of 6 needles" in said
    assert f"asked 40, placed {off[0]['realised_depth_percent']:.0f}" in said


def test_a_text_that_repeats_and_a_needle_of_another_language_are_said(tmp_path):
    (tmp_path / "two.txt").write_text("It was quiet. He left.")
    text, german = haystack(str(tmp_path / "two.txt")), needle_files.read("german")
    row = {"depth_percent": 0, "realised_depth_percent": 0, "haystack_sentences": 5}
    assert "a text of 2 sentences, which the longest prompt repeats 2.5 times" in notes("two.txt", text, german, [row])
    assert notes("two.txt", text, german, [row | {"haystack_sentences": 2}]) == ""
    said = notes("text", haystack("text"), german, [row])
    assert said.startswith("needle german: its language is de, haystack text is English")
    assert notes("text", haystack("text"), needle_files.read("sandwich"), [row]) == ""


def test_the_pages_depth_axis_does_not_lie(tmp_path):
    off = {25.0: (3.0, 9.0), 75.0: (95.0, 95.0)}
    rows = [
        row(depth=depth, trial=trial, realised_depth_percent=off.get(depth, (depth + 2, depth))[trial])
        for depth in (0.0, 25.0, 75.0, 100.0)
        for trial in (0, 1)
    ]
    page = page_of(rows, tmp_path)
    assert "at 3–9%</span></small>" in page
    assert "at 95%</span></small>" in page
    assert page.count("%</span></small>") == 2
    assert ">needle depth asked</th>" in page
    assert "more than 5 points away" in page
    true = page_of([row(depth=depth, realised_depth_percent=depth + 4) for depth in (0.0, 50.0)], tmp_path)
    assert "depth asked</th>" not in true
    assert "%</small>" not in true
