"""Signs of what can go wrong: against float64 numbers of the same rows, in words, on the card and on the page."""

import json

import pytest
import torch
from test_cli import call
from tiny import build

import ssmax_eval
from ssmax_eval.data.documents import prose_ids
from ssmax_eval.mechanisms.attach import attach
from ssmax_eval.training.card import write_card
from ssmax_eval.training.signs import ROWS, TEXTS, sentences, signs

GOOD = {"length": 128, "loss": 3.0, "loss_before": 2.98, "entropy": [[1.0, 2.0]], "s": [0.2, 0.3]}


def test_numbers_are_those_of_the_unmodified_model(tokenizer):
    """Loss and entropies of transformers' own eager attention, in float64."""
    model = build("Llama", vocab_size=1024, attn_implementation="eager")
    found = signs(model, tokenizer)
    ids = torch.tensor([prose_ids(tokenizer, found["length"], f"signs/{i}") for i in range(TEXTS)])
    with torch.inference_mode():
        told = model.double()(input_ids=ids, output_attentions=True)
    nll = torch.nn.functional.cross_entropy(told.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert found["loss"] == pytest.approx(float(nll), abs=1e-3)
    for layer, weights in enumerate(told.attentions):
        rows = weights[:, :, -ROWS:].double()
        expected = torch.special.entr(rows).sum(-1).mean((0, 2))
        assert found["entropy"][layer] == pytest.approx(expected.tolist(), abs=1e-3)
    assert found["s"] == []
    assert found["told"] == [*sentences(found)]


def test_collapse_and_a_dead_s_are_seen(tokenizer):
    model = build("Llama", vocab_size=1024)
    attach(model, "ssmax-fixed:s=2000")
    assert "Attention has collapsed" in " ".join(signs(model, tokenizer)["told"])
    attach(model, "ssmax:s=0.001")
    told = " ".join(signs(model, tokenizer)["told"])
    assert "s is near 0 in 8 of 8 heads" in told
    assert "has not collapsed" in told


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {},
            [
                "short texts are read as well",
                "not collapsed: the entropy of its heads is 1.00 to 2.00",
                "No head's s is near 0",
            ],
        ),
        ({"loss": 3.1}, ["3.100 nats a token, 2.980 before: it harms short texts"]),
        ({"entropy": [[0.01, 0.02, 1.0]]}, ["collapsed: 2 of 3 heads look at one token"]),
        (
            {"loss": float("nan"), "entropy": [[float("nan"), 1.0]]},
            ["the loss is not a number", "heads is 1.00 to 1.00"],
        ),
        ({"s": [0.3, -0.01]}, ["s is near 0 in 1 of 2 heads"]),
        ({"loss_before": None, "entropy": [], "s": []}, []),
    ],
)
def test_each_sign_is_one_sentence(changed, says):
    told = [*sentences(GOOD | changed)]
    assert len(told) == (3 if says else 0)
    for each in says:
        assert each in " ".join(told)


def test_a_retrofit_tells_its_signs_and_keeps_them(capsys, checkpoint, tmp_path):
    code, out, err = call(
        capsys, "retrofit", "--model", checkpoint, "--attention", "ssmax:s=40", "--out", tmp_path / "new"
    )
    assert code == 0, err
    assert out.strip() == str(tmp_path / "new")
    assert "nats a token" in err
    assert "nats a token" in (tmp_path / "new" / "README.md").read_text()


def test_a_trained_models_card_and_page_have_them(capsys, tmp_path):
    changes = (
        "steps=2",
        "layers=1",
        "text_characters=20000",
        "train_length=64",
        "short_length=64",
        "tokens_per_step=128",
    )
    given = [part for change in changes for part in ("--set", change)]
    code, _, err = call(
        capsys, "train", "--recipe", "smoke", "--attention", "ssmax", "--out", tmp_path / "m", *given, "--device", "cpu"
    )
    assert code == 0, err
    [folder] = [path.parent for path in tmp_path.rglob("training.json")]
    told = json.loads((folder / "training.json").read_text())["signs"]["told"]
    assert len(told) == 2  # no model before
    write_card(folder)
    assert f"- {told[0]}" in (folder / "README.md").read_text()
    ssmax_eval.needle(str(folder), context_lengths=[64], depth_percents=[50], trials=1, output_path=tmp_path / "runs")
    page = ssmax_eval.report(tmp_path / "runs", tmp_path / "page.html").read_text()
    assert told[0].replace("'", "&#39;") in page
