"""An s for each head: its gradient against differences of the readings, what is saved, and when it is taken."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from test_comparison import rows_of
from tiny import build

from ssmax_eval import UserError, load_model
from ssmax_eval.mechanisms.attach import mechanisms_of
from ssmax_eval.mechanisms.edit import Edit
from ssmax_eval.models.retrofit import retrofit
from ssmax_eval.models.subjects import RunOptions
from ssmax_eval.probes.needle.probe import NeedleProbe
from ssmax_eval.readers.transformers import TransformersReader
from ssmax_eval.setting import Setting
from ssmax_eval.studies.advise import AS_TRAINED, Advice, advise
from ssmax_eval.studies.asked import Asked
from ssmax_eval.studies.per_head import PerHead, Tail, beside, factors_of, saved, told_of_saving


def prompts_of(tokenizer, depths=(0, 100)):
    probe = NeedleProbe(context_lengths=(96,), depth_percents=depths, trials=1)
    return [probe.prompt(tokenizer, sample) for sample in probe.plan()]


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_the_gradient_is_that_of_the_readings(family, tokenizer):
    """Of ln factor, by central differences of the nll that the needed scale reads."""
    model = build(family, vocab_size=1024)
    (prompt,) = prompts_of(tokenizer, (50,))
    reader = TransformersReader(model, tokenizer)
    with Setting.of("ssmax:s=0.2")(model):
        ln = {layer: torch.zeros(4, requires_grad=True) for layer in (0, 1)}
        tail = Tail(reader, prompt)
        tail.nll(model, ln).backward()

        def nll(layer, head, by):
            factor = torch.ones(4)
            factor[head] = torch.tensor(by).exp()
            again = reader.again([prompt], prompt.question_start)
            logits = again.logits(prompt.answer_length, {layer: Edit(again.rows, factor=factor)})[0]
            return float(torch.nn.functional.cross_entropy(logits, torch.tensor(prompt.ids[-prompt.answer_length :])))

        for layer in ln:
            for head in range(4):
                by = (nll(layer, head, 0.02) - nll(layer, head, -0.02)) / 0.04
                assert float(ln[layer].grad[head]) == pytest.approx(by, abs=1e-3)


def test_fitted_factors_make_the_answers_likelier(tokenizer):
    model = build("Llama", vocab_size=1024)
    reader, prompts = TransformersReader(model, tokenizer), prompts_of(tokenizer)
    with Setting.of("ssmax:s=0.2")(model):
        factors = factors_of(reader, prompts)
        as_is, then = (
            sum(
                float(Tail(reader, each).nll(model, {at: torch.tensor(of).log() for at, of in by.items()}).detach())
                for each in prompts
            )
            for by in ({layer: [1.0] * 4 for layer in factors}, factors)
        )
    assert {layer: len(each) for layer, each in factors.items()} == {0: 4, 1: 4}
    assert then < as_is


def test_values_of_each_head_are_saved(checkpoint, tmp_path):
    values = {0: {"s": [0.1, 0.2, 0.3, 0.4]}, 1: {"s": [0.5, 0.6, 0.7, 0.8]}}
    folder = retrofit(str(checkpoint), "ssmax:s=0.2", tmp_path / "heads", values=values)
    model, _ = load_model(str(folder))
    found = [each.s.tolist() for each in mechanisms_of(model).values()]
    assert found == [pytest.approx(each["s"]) for each in values.values()]


def test_a_fit_is_taken_where_its_interval_is_above_0():
    assert PerHead(0.9, 0.8, 0.02, 0.2, 0, {}).pays
    assert not PerHead(0.9, 0.8, -0.01, 0.2, 0, {}).pays
    assert str(PerHead(0.8, 0.9, -0.2, 0.01, 0, {})).endswith(
        "(difference -0.10, 95% interval -0.20 to +0.01): not taken."
    )


def test_what_decides_for_each_head_is_found_beyond_the_training_length():
    """At the trained length all is gained, beyond it a quarter is lost: that is no gain where the advice is for."""
    rows = pd.concat(
        [
            rows_of([i < right for i in range(40)], series, length).assign(
                prompt_sha256=[f"{length}/{i}" for i in range(40)]
            )
            for series, by_length in {"own": {64: 0, 128: 0}, "x": {64: 0, 128: 30}, "heads": {64: 40, 128: 20}}.items()
            for length, right in by_length.items()
        ]
    ).assign(plan=1)
    setting = Setting.of("ssmax:s=0.2")
    held_out, own = rows[rows["series"] != "heads"], {AS_TRAINED: "own", setting: "x"}
    advice = Advice("m", {64: setting, 128: setting}, 64, pd.DataFrame(), own, held_out, pd.DataFrame(), {}, {})
    accuracy, advised, low, high, beyond = beside(rows[rows["series"] == "heads"], advice, "heads")
    assert (accuracy, advised, beyond) == (0.5, 0.75, 64)
    assert high < 0
    assert "it finds 0.50 beyond the 64 tokens it was trained at, with" in str(
        PerHead(accuracy, advised, low, high, beyond, {})
    )


def test_a_checkpoint_whose_layers_were_not_tried_is_not_saved(tokenizer, tmp_path):
    """Texts of 128 tokens stay within the windows of 192, and the scale stood on all layers; in a checkpoint it would not."""
    model = build("Gemma3Text", vocab_size=1024, sliding_window=192, max_position_embeddings=256)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="tried on texts of up to 128 tokens, which the windows of some layers hold"):
        retrofit(str(tmp_path / "m"), "ssmax:s=0.2", tmp_path / "out", tried=128)
    assert not (tmp_path / "out").exists()
    asked = Asked(str(tmp_path / "m"), (96, 128), (0, 100), 12, "single")
    setting = Setting.of("ssmax:s=0.2")
    advice = Advice("m", {128: setting}, 64, pd.DataFrame(), {}, pd.DataFrame(), pd.DataFrame(), {}, {})
    told = told_of_saving(asked, advice, RunOptions(device="cpu", output_path=tmp_path / "runs"), tmp_path / "out")
    assert [*told] == ["not saved"]
    retrofit(str(tmp_path / "m"), "ssmax:s=0.2", tmp_path / "out", tried=256)


@pytest.mark.parametrize("pays", [True, False])
def test_what_is_saved_is_what_paid(checkpoint, tmp_path, monkeypatch, pays):
    """A whole race whose choice is a query scale; the interval of the last step is given."""
    from ssmax_eval.studies import advise as studies
    from ssmax_eval.studies import per_head

    asked = Asked(str(checkpoint), (96, 128), (0, 100), 12, "single")
    options = RunOptions(device="cpu", output_path=tmp_path / "runs")
    monkeypatch.setattr(studies, "CANDIDATES", (AS_TRAINED, Setting.of("log-n"), Setting.of("ssmax")))

    def swapped(rows, left):
        return dict.fromkeys(left, next(name for name in sorted(set(rows["series"])) if "swapped in" in name))

    monkeypatch.setattr(studies.statistics, "chosen", swapped)
    advice = advise(asked, options)
    assert advice.setting.attention is not None
    assert advice.fitted is not None
    held = beside(advice.held_out[advice.held_out["series"] == advice.name].assign(series="x"), advice, "x")
    assert held[0] == held[1]  # the same rows: no difference
    low = 0.1 if pays else -0.1
    monkeypatch.setattr(per_head, "beside", lambda *_: (0.9, 0.8, low, 0.3, 0))
    advice = replace(
        advice, settings={96: AS_TRAINED, 128: advice.setting}
    )  # as advised, which a checkpoint is at one length
    told = saved(asked, advice, options, tmp_path / "out")
    assert told.get("saved with", "").endswith(", taken and checked at 128 tokens alone") == (not pays)
    assert told["s for each head"].endswith(": taken." if pays else ": not taken.")
    model, _ = load_model(str(tmp_path / "out"))
    mechanisms = [*mechanisms_of(model).values()]
    if pays:
        assert {each.name for each in mechanisms} == {"ssmax"}
        assert len({s for each in mechanisms for s in each.s.tolist()}) > 1
    else:
        assert {each.name for each in mechanisms} == {str(advice.setting.attention).partition(":")[0]}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "runs"]


def test_layers_with_a_window_have_no_factor(tokenizer):
    """A checkpoint has an s on full layers alone, so that is what is fitted."""
    model = build("Gemma3Text", vocab_size=1024, layer_types=["sliding_attention", "full_attention"])
    with Setting.of("ssmax:s=0.2")(model, 96):
        factors = factors_of(TransformersReader(model, tokenizer), prompts_of(tokenizer, (0,)))
    assert [*factors] == [1]
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
