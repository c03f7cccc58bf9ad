"""Signs of a training, or of a mechanism put in, that went wrong: read on a few texts at short length, told in one sentence each."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.documents import prose_ids
from ..data.encoding import prefix_of
from ..errors import UserError
from ..mechanisms.attach import learned_of
from ..mechanisms.interface import recording
from ..mechanisms.layers import attends_both_ways, reads_on
from ..mechanisms.recorder import Recorded, Recorder
from ..mechanisms.train_length import train_length_of
from ..models.load import load_model
from ..models.sources import TRAINING, shown
from ..readers.nll import token_nll
from .folder import read_record, write_record

TEXTS, LONGEST, ROWS = 4, 512, 32  # texts, tokens of each at most, rows at its end that attention is looked at in
WORSE = 0.05  # nats a token that count as harm at short length
COLLAPSED = 0.05  # nats: a head of less looks at one token in nearly every row
MOST = 0.5  # of the heads
NEAR_ZERO = 0.02  # s: at 100,000 keys s ln n is .23, so that attention is nearly even


def signs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, before: PreTrainedModel | None = None
) -> dict[str, Any]:
    """Return what a model does on a few texts as long as it was trained on, at most LONGEST tokens.

    before: the model that it was made of. length: tokens of a text. loss, loss_before: nats a token; None of an encoder, and
    where there is no model before. entropy: of each head's weights in a text's last rows, the mean, by layer; none of a mechanism
    whose weights are no map over the keys. s: the learned s of all heads, where the mechanism has any. told: what they say.
    """
    lengths = [train_length_of(each.config) or LONGEST for each in (model, before) if each is not None]
    length, start = min(*lengths, LONGEST), prefix_of(tokenizer)
    texts = [[*start, *prose_ids(tokenizer, length, f"signs/{i}")][:length] for i in range(TEXTS)]
    ids = torch.tensor(texts)
    encoder = attends_both_ways(model)
    found = {
        "length": length,
        "loss": None if encoder else loss(model, ids),
        "loss_before": None if encoder or before is None else loss(before, ids),
        "entropy": entropies(model, ids),
        # beside a bias, an s of 0 is a scale that does not grow, and no harm
        "s": [float(s) for layer in learned_of(model).values() if "b" not in layer for s in layer.get("s", [])],
    }
    return found | {"told": [*sentences(found)]}


def loss(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Return the loss on texts, nats a token."""
    model.eval()
    return round(float(token_nll(model, ids).mean()), 4)


def entropies(model: PreTrainedModel, ids: torch.Tensor) -> list[list[float]]:
    """Return the entropy of each head's weights in the last rows, nats, the mean over texts and rows, by layer."""

    def reduce(recorded: Recorded) -> list[float] | None:
        if not recorded.mechanism.has_map or recorded.mechanism.signed:
            return None
        weights = recorded.weights.double()
        mean = torch.special.entr(weights / weights.sum(-1, keepdim=True)).sum(-1).mean((0, 2))
        return [round(float(each), 4) for each in mean]

    length = ids.shape[1]
    rows = torch.arange(max(0, length - ROWS), length).expand(len(ids), -1).to(reads_on(model))
    try:
        with torch.inference_mode(), recording(model.eval(), Recorder(rows, reduce)) as recorder:
            model(input_ids=ids.to(reads_on(model)), use_cache=False, logits_to_keep=1)
    except (UserError, TypeError):  # its attention is out of reach
        return []
    return [each for _, each in sorted(recorder.kept.items()) if each]


def of_retrofit(reference: str, folder: Path) -> list[str]:
    """Return the signs of a model that was made of another without training, in words, and keep them in its folder.

    In its training record where it has one, and in README.md where it has none of those. What cannot be read, as there is no memory
    for both models, is said in place of it.
    """
    try:
        before, _ = load_model(reference, device="cpu")
        after, tokenizer = load_model(str(folder), device="cpu")
        found = signs(after, tokenizer, before)
    except (UserError, RuntimeError, MemoryError) as error:
        return [f"what can go wrong could not be read ({type(error).__name__}: {str(error)[:200]})"]
    told: list[str] = found["told"]
    if (folder / TRAINING).is_file():
        write_record(folder, read_record(folder) | {"signs": found})
    if not (folder / "README.md").exists():
        of = shown(Path(reference).name or reference)
        lines = [
            f"# {folder.name}",
            "",
            f"{of}, with another attention mechanism or RoPE, put in without training.",
            "",
        ]
        (folder / "README.md").write_text("\n".join([*lines, *(f"- {each}" for each in told), ""]), encoding="utf-8")
    return told


def sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what signs say, a sentence each."""
    after, before = found["loss"], found["loss_before"]
    if after is not None and not math.isfinite(after):
        yield f"At {found['length']:,} tokens the loss is not a number: the training diverged, or its numbers overflow."
    elif after is not None and before is not None:
        more = after - before
        told = f"At {found['length']:,} tokens the loss is {after:.3f} nats a token, {before:.3f} before"
        yield (
            f"{told}: it harms short texts, train it further."
            if more > WORSE
            else f"{told}: short texts are read as well as before."
        )
    heads = [head for layer in found["entropy"] for head in layer if math.isfinite(head)]
    if heads:
        sharp = sum(head < COLLAPSED for head in heads)
        if sharp > MOST * len(heads):
            yield f"Attention has collapsed: {sharp} of {len(heads)} heads look at one token in nearly every row; its scale is too large."
        else:
            yield f"Attention has not collapsed: the entropy of its heads is {min(heads):.2f} to {max(heads):.2f} nats."
    if s := found["s"]:
        small = sum(abs(each) < NEAR_ZERO for each in s)
        if small:
            yield f"s is near 0 in {small} of {len(s)} heads, which look at all tokens nearly alike."
        else:
            yield f"No head's s is near 0: {min(s):.3f} to {max(s):.3f}."
