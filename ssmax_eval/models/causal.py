"""Whether a loaded model is a causal language model: a row of the vocabulary for each token, which sees nothing after it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UserError, first_line
from ..mechanisms.layers import reads_on

TOKENS = 9


@torch.inference_mode()
def refuse_unless_causal(model: PreTrainedModel, ids: Tensor | None = None) -> None:
    """Change the end of a text and raise UserError if an earlier row of logits changes, or if its logits are not of its tokens.

    ids (1, tokens): the text; None takes a short one. Class names and config flags tell too little: prefix models, encoders
    with a language-model head and multimodal wrappers differ from decoders only in what their rows see. Equal shapes give
    equal roundings; some are allowed for kernels that sort tokens, as mixtures of experts do. A model that draws at random in
    each forward differs too.
    """
    name = type(model).__name__
    ids = short_text(model) if ids is None else ids
    kept = ids.shape[1] * 3 // 4
    other = ids.clone()
    other[:, kept:] = ids[:, :1]
    try:
        of_both = [model(input_ids=each).logits for each in (ids, other)]
    except UserError:
        raise
    except Exception as error:  # a model that needs more than text raises anything
        raise UserError(f"{name}: it cannot read a text of token ids alone ({first_line(error)})") from error
    refuse_other_rows(name, of_both[0], ids)
    rows = [logits[0, :kept].float() for logits in of_both]
    change = (rows[0] - rows[1]).abs().max()
    # a NaN is no sign of this kind, and is told where scores are
    # what float64 rounds off is seen where it tips a rounding to float32
    roundings = max(4 * torch.finfo(model.dtype).eps, 64 * torch.finfo(torch.float32).eps)
    allowed = roundings * rows[0].abs().max()
    if change > allowed:
        again = model(input_ids=ids).logits[0, :kept].float()
        if (again - rows[0]).abs().max() > allowed:
            raise UserError(
                f"{name}: two forwards of one text differ, so it draws at random, and nobody would get its numbers again; take "
                "out what draws"
            )
        raise UserError(
            f"{name} is not a causal (decoder-only) language model: its rows see what comes after them; use a decoder"
        )


def refuse_without_words(model: PreTrainedModel) -> None:
    """Raise UserError for a model of a user's own that does not tell the table of its words: its size and device are asked of it."""
    try:
        told = model.get_input_embeddings() is not None
    except NotImplementedError:  # transformers looks for it under the usual names
        told = False
    if not told:
        name = type(model).__name__
        raise UserError(
            f"{name}: it does not tell the table of its words; give its class a method get_input_embeddings that returns it"
        )


def refuse_other_rows(name: str, logits: Tensor, ids: Tensor) -> None:
    """Raise UserError unless logits have a row of the vocabulary for each of ids (1, tokens).

    A classifier's are of its labels. A prompt of virtual tokens puts rows before those of a text, where nothing tells which is which.
    """
    if logits.ndim == 3 and logits.shape[1] != ids.shape[1]:
        raise UserError(
            f"{name}: its logits have {logits.shape[1]} rows for a text of {ids.shape[1]} tokens, so they cannot be told apart; "
            "use a model without tokens of its own (of PEFT's: LoRA, or prefix tuning)"
        )
    if logits.ndim != 3 or int(ids.max()) >= logits.shape[-1]:
        raise UserError(
            f"{name}: its logits, of shape {tuple(logits.shape)}, are not of a vocabulary, as a classifier's are not; "
            "use a model with a language-model head"
        )


def short_text(model: PreTrainedModel) -> Tensor:
    """Return TOKENS ids, none of them special."""
    config = model.config.get_text_config(decoder=True)
    special = {*special_ids(config.to_dict()), *special_ids(model.config.to_dict())}
    plain = [token for token in range(min(64, config.vocab_size)) if token not in special] or [0]
    return torch.tensor([[plain[i % len(plain)] for i in range(TOKENS)]], device=reads_on(model))


def special_ids(config: dict[str, Any]) -> Iterator[int]:
    """Yield the token ids that a config gives a meaning: one for each, or several."""
    for key, value in config.items():
        if key.endswith(("_token_id", "_token_index")):
            yield from value if isinstance(value, list | tuple) else [value]
