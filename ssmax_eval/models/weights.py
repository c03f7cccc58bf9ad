"""Is a model that was loaded the one that its checkpoint says: its weights, and what turns its queries."""

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import UserError
from .config import rope_kinds
from .sources import ModelSource


def check_weights(source: ModelSource, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raise UserError if weights do not fit their model: missing, of a mechanism that the config does not name, or not finite."""
    unexpected = sorted(info["unexpected_keys"])
    if of_mechanism := [key for key in unexpected if ".ssmax." in key]:
        raise UserError(
            f"model {source.reference!r}: it holds {len(of_mechanism)} ssmax tensors, but its config names no attention mechanism "
            "('ssmax' entry); without it the model would compute something else"
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"model {source.reference!r}: {len(missing)} weights are missing, {missing[0]} first; the checkpoint is incomplete"
        )
    if unexpected:
        logging.getLogger(__name__).warning(
            "ssmax-eval: note: model %r: %d weights are not used, %s first",
            source.reference,
            len(unexpected),
            unexpected[0],
        )
    for name, parameter in model.named_parameters():
        if ".ssmax." in name and not parameter.is_meta and not torch.isfinite(parameter).all():
            raise UserError(f"model {source.reference!r}: {name} is not finite; the checkpoint is broken")


def refuse_unscaled_rope(source: ModelSource, model: PreTrainedModel) -> None:
    """Raise UserError if a config's RoPE scaling reaches none of the modules that rotate."""
    parameters = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    scaled = rope_kinds(parameters) & {"linear", "dynamic", "yarn", "longrope", "llama3", "proportional"}
    kinds = [getattr(module, "rope_type", None) for module in model.modules()]
    done = {str(kind) for each in kinds if each for kind in (each.values() if isinstance(each, dict) else [each])}
    if lost := sorted(scaled - done):
        raise UserError(
            f"model {source.reference!r}: {type(model).__name__} ignores the RoPE scaling {lost[0]!r} of its config; take it out"
        )


def refuse_other_frequencies(source: ModelSource, model: PreTrainedModel) -> None:
    """Raise UserError if what turns a model's queries is no number, whatever in its config came to that."""
    for name, buffer in model.named_buffers():
        if "inv_freq" in name and not buffer.is_meta and not torch.isfinite(buffer).all():
            raise UserError(
                f"model {source.reference!r}: its RoPE's frequencies are not finite; its config's rope_theta and RoPE "
                "parameters have to be numbers above 0"
            )
