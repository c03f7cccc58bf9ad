"""Whether a loaded model is a causal language model: its rows see nothing that comes after them."""

import torch
from transformers import PreTrainedModel

from ..errors import UserError
from .config import first_line

TOKENS = 9


@torch.inference_mode()
def refuse_unless_causal(model: PreTrainedModel) -> None:
    """Change the last token of a short text and raise UserError if an earlier row of logits changes, or if text alone cannot be read.

    Class names and config flags tell too little: prefix models, encoders with a language-model head and multimodal wrappers
    differ from decoders only in what their rows see. Equal shapes give equal roundings; some are allowed for kernels that
    sort tokens, as mixtures of experts do.
    """
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    special = {value for key, value in config.to_dict().items() if key.endswith(("_token_id", "_token_index"))}
    special |= {value for key, value in model.config.to_dict().items() if key.endswith(("_token_id", "_token_index"))}
    plain = [token for token in range(min(64, config.vocab_size)) if token not in special] or [0]
    ids = torch.tensor([[plain[i % len(plain)] for i in range(TOKENS)]], device=model.device)
    other = ids.clone()
    other[0, -1] = plain[TOKENS % len(plain)]
    try:
        rows = [model(input_ids=each).logits[0, :-1].float() for each in (ids, other)]
    except Exception as error:  # a model that needs more than text raises anything
        raise UserError(f"{name}: it cannot read a text of token ids alone ({first_line(error)})") from error
    change = (rows[0] - rows[1]).abs().max()
    # a NaN is no sign of this kind, and is told where scores are
    roundings = (64 if model.dtype == torch.float32 else 4) * torch.finfo(model.dtype).eps
    if change > roundings * rows[0].abs().max():
        raise UserError(
            f"{name} is not a causal (decoder-only) language model: its rows see what comes after them; use a decoder"
        )
