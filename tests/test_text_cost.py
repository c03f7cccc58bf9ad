"""Texts of any size: linear time, memory near the file's own size, and the same sentences and tokens as from the whole."""

import bz2
import random
import sys
import time
from pathlib import Path

import pytest
from handmade import handmade
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from ssmax_eval.data import reading, sentences, tokens
from ssmax_eval.data.documents import Documents
from ssmax_eval.data.haystacks import Document, haystack
from ssmax_eval.data.sentences import Sentences, split_sentences
from ssmax_eval.data.tokens import Tokens
from ssmax_eval.errors import UserError

ALPHABETS = ["ab .!?…\"'”’)] \n\t\u3000。！？MrDSté😀", "abc", "abc ", "aB. \n", "天。！ ？a. "]


def reference(text):
    """Split a text as the whole string at once, which is how plan 1's rule was written down first."""

    def cut_long(piece):
        while len(piece) > 1000:
            cut = piece.rfind(" ", 1, 1000)
            cut = cut if cut > 0 else 40
            yield piece[:cut]
            piece = piece[cut:].lstrip()
        yield piece

    pieces = [piece.strip() for piece in sentences.ENGLISH_END.split(" ".join(text.split()))]
    return [part for piece in pieces if piece for part in cut_long(piece)]


@pytest.mark.parametrize("block", [50, 1 << 20])
def test_sentences_read_in_blocks_are_those_of_the_whole(block, monkeypatch):
    monkeypatch.setattr(sentences, "BLOCK", block)
    monkeypatch.setattr(reading, "BLOCK", block)
    rng = random.Random(0)
    for _ in range(150):
        text = "".join(rng.choices(rng.choice(ALPHABETS), k=rng.choice([30, 300, 3000]))).replace("M", " Mr. ")
        if text.strip():
            assert split_sentences(text) == reference(text)
            several = split_sentences(text, any_script=True)
            assert " ".join(several).split() or several == []
            assert "".join("".join(several).split()) == "".join(text.split())


@pytest.mark.parametrize("text", ["abcdefghij", ".", "天空", "a. ", "e\u0301", "।", "x!"])
@pytest.mark.parametrize("any_script", [False, True])
def test_splitting_takes_linear_time(text, any_script):
    """Four times the text, less than eight times the processor's time."""

    def seconds(size):
        whole, times = text * (size // len(text)), []
        for _ in range(3):
            started = time.process_time()
            assert len(Sentences(reading.in_blocks(whole), any_script)) > 1
            times.append(time.process_time() - started)
        return min(times)

    assert seconds(800_000) < 8 * seconds(200_000) + 0.05


@pytest.mark.parametrize("use", ["haystack", "loss"])
def test_memory_is_near_the_files_size(use, tmp_path):
    """With an emoji in it, which makes each character of a Python string four bytes wide."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from text_memory import measure, write

    sys.path.pop(0)
    size, constant = (24, 45) if use == "haystack" else (4, 60)
    extra, _ = measure(use, write(tmp_path / "text.txt", "wide", size * 1_000_000))
    assert extra < (3 * size + constant) * 1e6


def test_ids_in_pieces_are_those_of_the_whole(any_tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 3000)
    monkeypatch.setattr(tokens, "OVERLAP", 300)
    rng = random.Random(1)
    words = "The quiet harbour was full. 天空 😀 été\n\n  1234567 and, so-on".split(" ")
    texts = [" ".join(rng.choices(words, k=2500)), "".join(rng.choices(words, k=2500)), "line\n\n" * 3000]
    for text in texts:
        whole = any_tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        found = Tokens(any_tokenizer, text.encode())
        assert len(found.pieces) > 3
        assert len(found) == len(whole)
        spans = [(start, min(start + 701, len(whole))) for start in range(0, len(whole), 701)]
        assert [id for ids in found.stretches(spans) for id in ids] == whole


def prepending():
    """Return a tokenizer that puts a space in front of every text it is given, as SentencePiece's do: a piece has one too many."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.T"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "r"), ("▁", "h"), ("▁h", "ar"), ("o", "u"), ("q", "u")]
    vocab = {name: i for i, name in enumerate(["<unk>", *letters, *(first + second for first, second in merges)])}
    base = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    base.decoder = decoders.Replace("▁", " ")
    return PreTrainedTokenizerFast(tokenizer_object=base, unk_token="<unk>")


def test_pieces_meet_where_both_have_the_same_tokens(monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 3000)
    monkeypatch.setattr(tokens, "OVERLAP", 300)
    tokenizer, text = prepending(), "The quiet harbour was the old one. " * 1000
    whole = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    found = Tokens(tokenizer, text.encode())
    assert next(found.stretches([(0, len(found))])) == whole


def test_one_endless_word_is_cut_and_nothing_of_it_lost(monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 3000)
    monkeypatch.setattr(tokens, "OVERLAP", 300)
    tokenizer = handmade()
    for text in ("abcdefghij" * 2000, "天空" * 3000, "a" * 9001, " " * 9001 + "end", "😀" * 3000):
        found = Tokens(tokenizer, text.encode())
        (ids,) = found.stretches([(0, len(found))])
        assert tokenizer.decode(ids) == text


def test_windows_of_long_files_are_drawn_as_before(tmp_path):
    """Places are counted in tokens over all files, and drawn among as from a list of them."""
    tokenizer, rng = handmade(), random.Random(3)
    for name in "abc":
        words = rng.choices("The old harbour was quiet. Rain fell on stone.".split(), k=rng.randint(20_000, 40_000))
        (tmp_path / f"{name}.txt").write_text(" ".join(words))
    found = Documents(str(tmp_path)).windows(tokenizer, 200, 12, 5)
    encoded = {
        f"{name}.txt": tokenizer((tmp_path / f"{name}.txt").read_text(), add_special_tokens=False).input_ids
        for name in "abc"
    }
    places = [(name, k) for name, ids in encoded.items() for k in range(len(ids) // 200)]
    chosen = sorted(random.Random("5/documents").sample(range(len(places)), 12))
    assert [window.name for window in found] == [f"{places[i][0]} {places[i][1]}" for i in chosen]
    for window, i in zip(found, chosen, strict=True):
        name, k = places[i]
        assert window.ids == encoded[name][k * 200 : (k + 1) * 200]


def test_a_tokenizer_without_offsets_refuses_what_it_would_need_whole(monkeypatch):
    monkeypatch.setattr(tokens, "LONGEST_WITHOUT_OFFSETS", 1000)
    tokenizer = handmade()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert len(Tokens(tokenizer, b"word " * 100)) > 100
    with pytest.raises(UserError, match=r"text 'book.txt': 5,000 bytes are too long for .*; give at most 1,000"):
        Tokens(tokenizer, b"word " * 1000, "book.txt")


def test_blocks_hash_and_read_as_the_whole_file(tmp_path, monkeypatch):
    import hashlib

    monkeypatch.setattr(reading, "BLOCK", 7)
    text = "Été à l'île. Il fait beau! 天空。 😀 The  end.\n\n" * 20
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.bz2").write_bytes(bz2.compress(text.encode()))
    both = haystack(str(tmp_path))
    assert both.sha256 == hashlib.sha256(f"{text}\n{text}".encode()).hexdigest()
    assert list(both.every) == list(Document("d", f"{text}\n{text}").every)
    digest = hashlib.sha256()
    for name in ("a.txt", "b.bz2"):
        digest.update(f"{name}\0{len(text)}\0{text}".encode())
    assert Documents(str(tmp_path)).sha256 == digest.hexdigest()
    for name, content, message in (
        ("c.txt", text.encode()[:-2] + b"\xe2\x82", "is not UTF-8"),
        ("c.txt", b"a" * 70 + b"\0", "is binary"),
        ("c.gz", b"nothing packed", "cannot be read"),
        ("c.txt", b" \n\t", "holds no text"),
    ):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            haystack(str(tmp_path / "other" / name))
    assert Document("d", text).every[0] == "Été à l'île."
