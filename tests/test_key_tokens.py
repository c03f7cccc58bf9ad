"""Key tokens are LongPPL's: against loops in float64 over the unmodified model's forward; one judge for all models, or no comparison."""

import copy
import math
import random
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import torch
from scipy import stats
from tiny import build

import ssmax_eval
from ssmax_eval import statistics
from ssmax_eval.data.documents import Window
from ssmax_eval.data.prose import prose
from ssmax_eval.errors import UserError
from ssmax_eval.probes.loss.key_tokens import stretches
from ssmax_eval.probes.loss.probe import LossProbe
from ssmax_eval.probes.loss.rows import LossRow
from ssmax_eval.probes.loss.sections.keys import SECTION
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.report.context import Context
from ssmax_eval.report.section import Table
from ssmax_eval.rows import checked
from ssmax_eval.statistics.losses import over_clusters
from ssmax_eval.store import run_id_of

LENGTH, CONTEXT = 150, 24


def peaked(seed):
    """Return a model that is sure of what it says, so that losses lie far apart."""
    model = build("Llama", seed=seed, vocab_size=1024)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    return model


def said_by(model, prefix):
    """Return a document that the model itself says after a few drawn tokens, now and then another token: some losses are small."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 1000, (1, 4), generator=generator)
    while ids.shape[1] < LENGTH:
        with torch.no_grad():
            likely = (model(ids).logits[0, -1] / 1.5).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(likely, 1, generator=generator)[None]], 1)
    return Window("said", ids[0].tolist(), prefix)


def loops(model, window):
    """Return nll_full and nll_short of each token from CONTEXT on, token by token, in float64: the definition, word by word."""
    model, ids = copy.deepcopy(model).double(), window.ids
    stretch = CONTEXT // 4
    full, short = [], []
    for t in range(CONTEXT, LENGTH):
        end = min(CONTEXT + ((t - CONTEXT) // stretch + 1) * stretch, LENGTH)  # of its stretch
        near = ids[: window.prefix] + ids[end - CONTEXT + window.prefix : t]
        assert CONTEXT - stretch <= len(near) < CONTEXT
        for given, out in ((ids[:t], full), (near, short)):
            with torch.no_grad():
                logits = model(torch.tensor([given])).logits[0, -1]
            out.append(math.log(sum(math.exp(x) for x in logits.tolist())) - float(logits[ids[t]]))
    return full, short


@pytest.mark.parametrize("prefix", [0, 1])
def test_key_tokens_are_those_of_the_definition(prefix, tokenizer, monkeypatch):
    """Judged by itself, and another model measured on the tokens that this one chose."""
    model, other = peaked(0), peaked(1)
    window = said_by(model, prefix)
    monkeypatch.setattr(LossProbe, "windows", lambda *_: [window])
    full, short = loops(model, window)
    key = [s - f > 2 and f < 2 for f, s in zip(full, short, strict=True)]
    # neither none nor all, and each of the two conditions alone decides some
    assert 5 < sum(key) < len(key) - 5
    assert any(s - f > 2 and f >= 2 for f, s in zip(full, short, strict=True))
    assert any(s - f <= 2 and f < 2 for f, s in zip(full, short, strict=True))
    probe = LossProbe(context_length=LENGTH, documents=1, window=16, key_context=CONTEXT)
    (rows,) = probe(TransformersReader(model, tokenizer))
    row = rows[-1]
    assert [each["sample"] for each in rows] == probe.rows_planned()
    assert (row["measure"], row["position_start"], row["position_end"]) == ("key", CONTEXT, LENGTH)
    assert (row["tokens"], row["key_judge"], row["key_judge_fingerprint"]) == (sum(key), "itself", None)
    assert row["nll_sum"] == pytest.approx(sum(f for f, is_key in zip(full, key, strict=True) if is_key), abs=1e-3)
    # all else is as without key tokens
    plain = LossProbe(context_length=LENGTH, documents=1, window=16)
    assert next(plain(TransformersReader(model, tokenizer))) == rows[:-1]

    class Chosen:
        subject = type("Subject", (), {"label": "first", "fingerprint": "f1"})
        reference = "first"

        def __init__(self):
            self.tokenizer = tokenizer

        def key_tokens(self, *_):
            return torch.tensor(key)

        def leave(self):
            pass

    judged = LossProbe(context_length=LENGTH, documents=1, window=16, key_context=CONTEXT, key_model=Chosen())
    theirs = next(judged(TransformersReader(other, tokenizer)))[-1]
    told, _ = loops(other, window)
    assert theirs["nll_sum"] == pytest.approx(sum(f for f, is_key in zip(told, key, strict=True) if is_key), abs=1e-3)
    assert (theirs["key_judge"], theirs["key_sha256"], theirs["tokens"]) == ("first", row["key_sha256"], sum(key))


def test_every_token_beyond_the_near_context_is_in_one_stretch():
    for length, context in ((150, 24), (151, 24), (25, 24), (4096, 256), (9, 2)):
        found = stretches(length, context)
        assert [t for start, end in found for t in range(start, end)] == [*range(context, length)]
        assert max(end - start for start, end in found) <= max(1, context // 4)


def far_facts(file):
    """Write a text in which a number comes back when the sentence that told it is out of sight."""
    rng = random.Random(0)
    lines = prose(rng)
    for city in ("Tokyo", "Paris", "Lima", "Oslo", "Cairo", "Rome", "Delhi", "Seoul"):
        told = f" The special magic {city} number is: {rng.randrange(10**6, 10**7)}."
        filler = " ".join(islice(lines, 7))
        file.write_text(
            (file.read_text() if file.exists() else "")
            + f"{told} {filler} What is the special magic {city} number?{told} "
        )
    return str(file)


def test_one_judge_for_all_models(tmp_path):
    """Of the bundled pair: with a judge both have their loss on the same tokens, and are compared; each by itself they are not."""
    ask = {"text": far_facts(tmp_path / "facts.txt"), "context_length": 768, "documents": 3, "output_path": tmp_path}
    pair = ["softmax-bible-2m", "ssmax-bible-2m"]
    rows = ssmax_eval.loss(pair, key_model="Judge=ssmax-bible-2m", **ask)
    keys = rows[rows["measure"] == "key"]
    assert set(keys["key_context"]) == {256}  # the training length
    assert keys.groupby("document")["key_sha256"].nunique().eq(1).all()
    assert keys.groupby("document")["tokens"].nunique().eq(1).all()
    assert keys["tokens"].sum() > 0
    assert set(keys["key_judge"]) == {"Judge"}
    own = ssmax_eval.loss(pair, key_context="auto", **ask)
    itself = own[(own["measure"] == "key") & (own["model"] == pair[1])]
    # what the judge says of its own tokens is what it says as a judge
    assert itself["key_sha256"].tolist() == keys[keys["model"] == pair[1]]["key_sha256"].tolist()
    both = statistics.with_series(pd.concat([rows, own], ignore_index=True))
    found = statistics.key_loss(both)
    assert found.groupby("key_judge")["judges"].apply(list).to_dict() == {
        "Judge": [False, True],
        "itself": [True, True],
    }
    compared = statistics.compare_key_loss(both, both["series"].iloc[0])
    assert compared["key_judge"].tolist() == ["Judge"]
    assert (compared["documents"].iloc[0], compared["others"].iloc[0]) == (3, 0)
    numbers = SECTION.numbers(both, Context())
    page = " ".join(str(each) for each in SECTION.tables(numbers))
    assert "judged by Judge" in page
    assert "its key loss is too low, and models are not compared" in page
    assert "The judge chose among tokens that it predicts well" in page
    assert len(SECTION.summary(numbers)["key_loss"]) == 4


def test_runs_of_before_keep_their_names_and_their_rows(tokenizer):
    probe = LossProbe(context_length=64, documents=2, window=16)
    assert run_id_of(probe.parameters()) == "1ee672b7569d"
    asked = LossProbe(context_length=64, documents=2, window=16, key_context=16).parameters()
    assert asked == probe.parameters() | {"key_context": 16, "key_model": "itself"}
    row = next(probe(TransformersReader(build("Llama", vocab_size=1024), tokenizer)))[0]
    common = {"model": "m", "attention": None, "rope": "as trained"}
    assert checked(common | row, LossRow).key_sha256 is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"key_context": 128}, "key context 128: allowed are whole numbers of tokens, 2 to 127"),
        ({"key_context": 0}, "key context 0: allowed are whole numbers of tokens, 2 to 127"),
        ({"key_context": "often"}, "key context 'often': allowed are auto and whole numbers"),
        ({"key_context": "auto"}, "key context 512: allowed are whole numbers of tokens, 2 to 127"),
        ({"key_context": 16, "key_model": "ssmax-bible-2m"}, "its tokenizer makes other tokens of these documents"),
        ({"key_model": "nowhere/at-all"}, "nowhere/at-all"),
    ],
)
def test_what_cannot_judge_is_one_line(given, says, checkpoint, tmp_path):
    with pytest.raises(UserError, match=says):
        ssmax_eval.loss(str(checkpoint), context_length=128, documents=1, window=16, output_path=tmp_path, **given)
    assert not list(tmp_path.rglob("rows.jsonl"))


def test_a_judge_that_is_not_finite_is_a_failed_document(tokenizer, monkeypatch):
    own = TransformersReader.nll

    def nll(self, ids, chunk=None):
        return torch.full((len(ids), CONTEXT - 1), math.nan) if ids.shape[1] == CONTEXT else own(self, ids)

    monkeypatch.setattr(TransformersReader, "nll", nll)
    probe = LossProbe(context_length=48, documents=1, window=16, key_context=CONTEXT)
    (rows,) = probe(TransformersReader(build("Llama", vocab_size=1024), tokenizer))
    assert {row["error"] for row in rows} == {"nll is not finite"}
    assert {row["nll_sum"] for row in rows} == {None}


def judged_rows(model, nats, tokens, judge="j", chosen=None):
    columns = {
        "attention": "softmax",
        "attention_swapped": False,
        "rope": "as trained",
        "text": "t",
        "text_sha256": "x",
    }
    columns |= {
        "fingerprint": f"of {model}",
        "context_length": 64,
        "window": 16,
        "measure": "key",
        "position_start": 16,
    }
    columns |= {"position_end": 64, "key_context": 16, "key_judge": judge, "key_judge_fingerprint": f"of {judge}"}
    return pd.DataFrame(
        columns | {"model": model, "document_sha256": f"d{i}", "nll_sum": n, "tokens": t, "key_sha256": f"{(chosen or {}).get(i, i)}"}
        | {"error": None if n is not None else "out of memory"}
        for i, (n, t) in enumerate(zip(nats, tokens, strict=True))
    )  # fmt: skip


def test_trap_16_documents_are_clusters_of_unequal_size():
    """The interval is statsmodels' cluster-robust one of all tokens; of equal sizes it is scipy's of the documents' means."""
    rng = np.random.default_rng(0)
    sizes = [3, 1, 8, 5, 2, 9]
    tokens = [rng.normal(1 + 0.3 * i, 1, size) for i, size in enumerate(sizes)]
    found = over_clusters(pd.Series([each.sum() for each in tokens]), pd.Series(sizes))
    every, document = np.concatenate(tokens), np.repeat(np.arange(len(sizes)), sizes)
    fitted = sm.OLS(every, np.ones(len(every))).fit(cov_type="cluster", cov_kwds={"groups": document}, use_t=True)
    assert found == pytest.approx((every.mean(), *fitted.conf_int()[0]))
    means = np.array([each.mean() for each in tokens])
    low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
    assert over_clusters(pd.Series(4 * means), pd.Series([4] * len(means))) == pytest.approx((means.mean(), low, high))


def test_models_are_compared_on_the_same_tokens_alone():
    first = judged_rows("a", [2.0, 9.0, 0.0, None], [2, 3, 0, 4])
    second = judged_rows("b", [6.0, 3.0, 0.0, 4.0], [2, 3, 0, 4], chosen={1: "other"})
    rows = statistics.with_series(pd.concat([first, second]))
    line = statistics.compare_key_loss(rows, "a").iloc[0]
    assert (line["series"], line["documents"], line["others"]) == ("b", 2, 1)
    assert line["difference"] == pytest.approx((6.0 - 2.0) / 2)
    found = statistics.key_loss(rows).set_index("series")
    assert found.loc["b", "key_loss"] == pytest.approx(13 / 9)
    assert (found.loc["a", "documents"], found.loc["a", "failed"], found.loc["a", "key_tokens"]) == (3, 1, 5 / 3)
    assert found.loc["a", "share"] == pytest.approx(5 / (3 * 48))
    assert found.loc["a", "key_tokens_low"] >= 0
    assert not found["judges"].any()
    # two judges are two tables, and what was judged twice by one of them counts once
    two = statistics.with_series(pd.concat([rows, rows, judged_rows("a", [5.0], [5], judge="a")], ignore_index=True))
    found = statistics.key_loss(two)
    assert found["documents"].tolist() == [3, 4, 1]
    assert found["judges"].tolist() == [False, False, True]


def test_judges_of_one_name_but_other_weights_are_two_tables():
    first = [judged_rows(name, [2.0, 4.0], [2, 2]) for name in "ab"]
    second = [rows.assign(key_judge_fingerprint="other") for rows in first]
    rows = statistics.with_series(pd.concat([*first, *second], ignore_index=True)).assign(nll_sum_near=None)
    found = SECTION.numbers(rows, Context())
    titles = [each.title.rpartition("judged by ")[2] for each in SECTION.tables(found) if isinstance(each, Table)]
    assert len({*titles}) == 2
    assert titles[1].endswith("(other)")
    assert [len(each.compared) for each in found] == [1, 1]
