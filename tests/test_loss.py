"""Losses equal the full-logits computation, whatever the chunks; sums are of nats and tokens; documents are what they say."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from tiny import ARCHITECTURES, build

from ssmax_eval import statistics
from ssmax_eval.data.documents import Documents, prose_ids
from ssmax_eval.errors import UserError
from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.position.rope import rope_scaled
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.loss.sections.losses import SECTION as LOSSES
from ssmax_eval.readers import head
from ssmax_eval.readers.nll import token_nll
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.report import context_of
from ssmax_eval.results import load_results
from ssmax_eval.run import run_probes

LENGTH = 200


def full_nll(model, ids):
    """The textbook computation: all logits at once."""
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


OTHERS = {
    "Gemma2": {},  # caps its logits
    "Cohere": {},  # scales them
    "Llama4Text": {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2},  # is its own decoder
}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *OTHERS])
def test_nll_equals_full_logits_in_chunks_of_either_kind(name, monkeypatch):
    """Heads that scale or cap logits included: what a model does around its head is its own code."""
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 128 * 2 * 7)
    model = build(name, **OTHERS.get(name, {}))
    if name not in OTHERS:
        attach(model, "ssmax")
    ids = torch.randint(3, 128, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    expected = full_nll(model, ids)
    forward = head.decoder_of(model).forward
    for chunk in (None, 13, 64, 1000):
        torch.testing.assert_close(token_nll(model, ids, chunk), expected, atol=1e-5, rtol=1e-5)
    assert head.decoder_of(model).forward == forward
    assert not head.decoder_of(model)._forward_hooks


def test_trap_13_full_logits_never_exist(monkeypatch):
    """The head sees at most the rows that fit, and the decoder runs once."""
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", 128 * 10)
    model = build("Llama")
    seen, runs = [], []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    model.model.layers[0].register_forward_pre_hook(lambda module, args: runs.append(1))
    token_nll(model, torch.randint(3, 128, (1, LENGTH)))
    assert len(runs) == 1
    assert max(seen) <= 10
    assert sum(seen) == LENGTH  # LENGTH - 1 rows, and the one that the decoder's own forward asks for


def test_a_uniform_model_has_ln_v(tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    torch.nn.init.zeros_(model.lm_head.weight)
    probe = LossProbe(context_length=300, documents=2, window=64)
    rows = [row for part in probe(TransformersReader(model, tokenizer)) for row in part]
    for row in rows:
        assert row["nll_sum"] / row["tokens"] == pytest.approx(math.log(1024), abs=1e-5)
    assert sum(row["tokens"] for row in rows if row["measure"] == "position") == 2 * 299
    assert [row["nll_sum_near"] / row["tokens"] for row in rows if row["measure"] == "gain"] == pytest.approx(
        [math.log(1024)] * 4, abs=1e-5
    )


def test_trap_16_rows_sum_nats_and_tokens(tokenizer):
    """Bins partition the positions; each holds the sum of the nll of exactly its tokens; the gain's windows are matched tokens."""
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    probe = LossProbe(context_length=300, documents=1, window=32)
    rows = next(probe(TransformersReader(model, tokenizer)))
    ids = torch.tensor([probe.source.windows(tokenizer, 300, 1, 0)[0].ids])
    expected = full_nll(model, ids)[0].double()
    places = [row for row in rows if row["measure"] == "position"]
    assert [row["position_end"] for row in places[:-1]] == [row["position_start"] for row in places[1:]]
    assert (places[0]["position_start"], places[-1]["position_end"]) == (1, 300)
    for row in places:
        # a token with p tokens in front is predicted by row p - 1
        part = expected[row["position_start"] - 1 : row["position_end"] - 1]
        assert row["tokens"] == len(part)
        assert row["nll_sum"] == pytest.approx(float(part.sum()), rel=1e-5)
    gains = [row for row in rows if row["measure"] == "gain"]
    assert [row["position_end"] for row in gains] == [75, 150, 300]
    for row in gains:
        end = row["position_end"]
        assert row["nll_sum"] == pytest.approx(float(expected[end - 32 : end - 1].sum()), rel=1e-5)
        assert row["nll_sum_near"] == pytest.approx(float(full_nll(model, ids[:, end - 32 : end]).sum()), rel=1e-5)
        assert row["tokens"] == 31


def test_resume_skips_whole_documents_and_repeats_broken_ones(tokenizer):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    probe = LossProbe(context_length=64, documents=3, window=16)
    first, second, third = probe(TransformersReader(model, tokenizer))
    done = {row["sample"] for row in first} | {row["sample"] for row in second[:-1]}
    assert list(probe(TransformersReader(model, tokenizer), done)) == [second, third]


def test_out_of_memory_reads_in_parts_then_is_a_failure(tokenizer, monkeypatch):
    model = build("Llama", vocab_size=1024, max_position_embeddings=4096)
    probe = LossProbe(context_length=2048, documents=1, window=16)
    whole = next(probe(TransformersReader(model, tokenizer)))
    tried = []

    def limited(self, ids, chunk=None):
        tried.append(chunk)
        if ids.shape[1] == 2048 and chunk != limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return token_nll(self.model, ids, chunk)

    monkeypatch.setattr(TransformersReader, "nll", limited)
    limit = 512
    parts = next(probe(TransformersReader(model, tokenizer)))
    assert tried[:2] == [None, 512]
    assert [row["nll_sum"] for row in parts] == pytest.approx([row["nll_sum"] for row in whole], rel=1e-5)
    limit = 1
    failed = next(probe(TransformersReader(model, tokenizer)))
    assert {row["error"] for row in failed} == {"out of memory"}
    assert {row["nll_sum"] for row in failed} == {None}


def test_trap_10_dynamic_rope_is_not_read_in_parts():
    model = build("Llama")
    with rope_scaled(model, scaling="dynamic:2", longest=400), pytest.raises(UserError, match="dynamic"):
        token_nll(model, torch.randint(3, 128, (1, 300)), 64)


def test_longrope_is_not_read_in_parts():
    """Its angles hang on the length of the forward: in parts another model would be measured."""
    half = build("Phi3").config.hidden_size // 4 // 2
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * half, "long_factor": [8.0] * half}
    model = build(
        "Phi3", rope_parameters=rope | {"original_max_position_embeddings": 64}, original_max_position_embeddings=64
    )
    with pytest.raises(UserError, match="longrope"):
        token_nll(model, torch.randint(3, 128, (1, 200)), 32)


def test_memory_that_runs_out_under_dynamic_rope_is_a_failed_document(tokenizer, monkeypatch):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)

    def no_memory(self, ids, chunk=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TransformersReader, "nll", no_memory)
    probe = LossProbe(context_length=2048, documents=2, window=16)
    with rope_scaled(model, scaling="dynamic:2", longest=4096):
        rows = [row for part in probe(TransformersReader(model, tokenizer)) for row in part]
    assert {row["error"] for row in rows} == {"out of memory"}


def test_a_window_that_is_not_finite_is_a_failure(tokenizer, monkeypatch):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    probe = LossProbe(context_length=128, documents=1, window=16)
    monkeypatch.setattr(LossProbe, "near", lambda *_: torch.full((4, 15), math.nan))
    assert {row["error"] for row in next(probe(TransformersReader(model, tokenizer)))} == {"nll is not finite"}


def test_a_wrapped_decoder_stays_wrapped():
    model = build("Llama")
    decoder = model.get_decoder()
    own, calls = decoder.forward, []

    def wrapped(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    decoder.forward = wrapped
    token_nll(model, torch.randint(3, 128, (1, 50)))
    assert decoder.forward is wrapped
    assert calls == [1]


def test_files_of_one_name_and_folders_called_bible(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "bible").mkdir()
    (tmp_path / "bible" / "a.txt").write_text("Not scripture. " * 500)
    monkeypatch.chdir(tmp_path)
    assert Documents("bible").name == "bible"
    assert "a.txt" not in Documents("bible").texts
    assert Documents("./bible").texts == {"a.txt": b"Not scripture. " * 500}
    assert Documents(".").name == tmp_path.name
    prose = LossProbe(pack=True).parameters()
    assert prose == LossProbe().parameters()


def test_longer_prose_begins_the_same(any_tokenizer):
    short, long = (prose_ids(any_tokenizer, length, "0/document/3") for length in (100, 5000))
    assert len(long) == 5000
    assert long[:100] == short
    assert prose_ids(any_tokenizer, 100, "0/document/4") != short


def test_windows_of_texts(tokenizer, tmp_path, caplog):
    """Exactly as long as asked, never overlapping, files apart; short files are left out by name or joined, and it says so."""
    words = [f"word{i} and so on." for i in range(3000)]
    (tmp_path / "long.txt").write_text(" ".join(words))
    (tmp_path / "short.txt").write_text("Only this.")
    found = Documents(str(tmp_path)).windows(tokenizer, 256, 20, seed=0)
    assert "1 of 2 files are shorter than 256 tokens" in caplog.text
    assert len({window.name for window in found}) == 20
    assert {len(window.ids) for window in found} == {256}
    text = tokenizer(" ".join(words), add_special_tokens=False).input_ids
    for window in found:
        k = int(window.name.split()[-1])
        assert window.ids == text[k * 256 : (k + 1) * 256]
    assert found == Documents(str(tmp_path)).windows(tokenizer, 256, 20, seed=0)
    assert found != Documents(str(tmp_path)).windows(tokenizer, 256, 20, seed=1)
    packed = Documents(str(tmp_path), pack=True)
    assert len(packed.texts) == 1
    with pytest.raises(UserError, match=r"documents 2: .* has text for \d+ of 90000 tokens .*--pack joins files"):
        Documents(str(tmp_path)).windows(tokenizer, 90000, 2, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_length": 4}, "context length 4"),
        ({"documents": 0}, "documents 0"),
        ({"window": 1}, "window 1"),
        ({"chunk": 0}, "chunk 0"),
    ],
)
def test_values_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        LossProbe(**change)


def test_trap_15_an_edited_text_is_read_again(tokenizer, tmp_path):
    """In one process, with one tokenizer: the rows are those of the text that the run id names."""
    book = tmp_path / "book.txt"
    windows, ids = [], []
    for word in ("mill", "boat"):
        book.write_text(f"The {word} was old. " * 200)
        probe = LossProbe(context_length=64, documents=1, text=str(book))
        windows.append(tokenizer.decode(probe.windows(tokenizer)[0].ids))
        ids.append(probe.parameters()["text_sha256"])
    assert ("mill" in windows[0], "boat" in windows[1]) == (True, True)
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    "change", [{"context_length": 128}, {"documents": 3}, {"text": "bible"}, {"window": 32}, {"seed": 1}]
)
def test_trap_15_every_parameter_is_part_of_the_run(change):
    from ssmax_eval.store import run_id_of

    plain = LossProbe(context_length=64, documents=2, window=16)
    other = dataclasses.replace(plain, **change)
    assert run_id_of(plain.parameters()) != run_id_of(other.parameters())
    assert run_id_of(plain.parameters()) == run_id_of(dataclasses.replace(plain, chunk=7).parameters())


def test_bos_is_part_of_the_length(tokenizer):
    """A tokenizer with a BOS gets it in front of the document and of every window that is read alone."""
    from conftest import make_tokenizer

    with_bos = make_tokenizer("bos")
    window = Documents().windows(with_bos, 128, 1, 0)[0]
    assert window.ids[0] == with_bos.bos_token_id
    assert (len(window.ids), window.prefix) == (128, 1)
    model = build("Llama", vocab_size=1024)
    probe = LossProbe(context_length=128, documents=1, window=32)
    gain = next(probe(TransformersReader(model, with_bos)))[-1]
    ids = torch.tensor([[window.ids[0], *window.ids[96:128]]])
    assert gain["nll_sum_near"] == pytest.approx(float(full_nll(model, ids)[0, 1:].sum()), rel=1e-5)
    assert np.isfinite(gain["nll_sum"])


def test_losses_of_unlike_tokens_are_not_ranked(tmp_path):
    """A token of one tokenizer is not as much text as another's; the documents of a seed tell that they are not the same."""
    kinds = {"a": "digits", "b": "multidigit", "c": "digits"}
    models = {
        name: (build("Llama", vocab_size=1024, max_position_embeddings=512), make_tokenizer(kind))
        for name, kind in kinds.items()
    }
    options = RunOptions(output_path=tmp_path)
    runs = [
        *run_probes([LossProbe(context_length=96, documents=2, window=16)], models, options=options),
        # of another seed no document is the same, and nothing says that the tokens are not
        *run_probes(
            [LossProbe(context_length=96, documents=2, window=16, seed=1)], {"d": models["a"]}, options=options
        ),
    ]
    rows = load_results(*runs)
    assert statistics.same_tokens(rows) == [["a", "c", "d"], ["b"]]
    context = context_of(runs)
    found = LOSSES.numbers(rows, context)
    said = next(iter(LOSSES.tables(found)))
    assert said.startswith("Not to be compared: a, c, d | b. Their tokenizers make other tokens of the text")
    for shown in (LOSSES.lead(found, context), LOSSES.page(found, context)):
        assert str(shown).count("Not to be compared: a, c, d | b.") == 1
    lead = str(LOSSES.lead(found, context))
    assert "Less is better" not in lead
    costs = lead[lead.index("costs, in nats") :]
    assert max(costs.index(f"{name} 7.") for name in "acd") < costs.index("b 7.")
    alike = LOSSES.numbers(rows[rows["series"] != "b"], context)
    assert "Less is better" in str(LOSSES.lead(alike, context))
    assert "compared" not in str(LOSSES.page(alike, context))


def test_the_first_sentence_is_of_the_longest_text_whatever_the_order(tokenizer, tmp_path):
    model = build("Llama", vocab_size=1024, max_position_embeddings=512)
    probes = [LossProbe(context_length=length, documents=1, window=16) for length in (192, 64)]
    runs = run_probes(probes, {"a": (model, tokenizer)}, options=RunOptions(output_path=tmp_path))
    leads = [
        LOSSES.lead(LOSSES.numbers(load_results(*order), context_of(order)), context_of(order))
        for order in (runs, runs[::-1])
    ]
    assert leads[0] == leads[1]
    assert int(re.search(r"With (\d+) tokens or more in front", str(leads[0]))[1]) > 64
