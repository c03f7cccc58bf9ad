"""What a model says of the length it was trained at, when training goes on at another: that of the last training."""

import copy
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..mechanisms.attach import attach, mechanisms_of
from ..mechanisms.train_length import train_length_of
from ..models import checkpoint
from ..position.rotary import kind_of, made_with, rotary_modules, rotation, told_parameters


def continue_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int, keeps_mechanism: bool) -> None:
    """Make `length` tokens the training length of a model that goes on training.

    A mechanism that is kept keeps what it learned, with L the new length; learned-p's table grows along its own line. Raises
    UserError if the model has no positions for so many tokens, or what its mechanism learned does not fit the length.
    """
    before = train_length_of(model.config)
    if length == before:
        return
    entry = vars(model.config).pop("ssmax", None)
    say_length(model, length)
    if tokenizer.model_max_length == before:
        tokenizer.model_max_length = length
    if entry is None:
        return
    model.config.ssmax = {**entry, "train_length": length}
    if not keeps_mechanism:
        return
    learned = mechanisms_of(model)
    attach(model, entry["attention"], bias=entry.get("position"))
    for name, mechanism in mechanisms_of(model).items():
        try:
            mechanism.take_over(learned[name])
        except RuntimeError as error:  # of a user's own, with shapes that depend on L
            raise UserError(
                f"recipe train_length {length}: what attention {mechanism.name} learned at {before} does not fit; "
                f"go on at {before}, or give the mechanism a take_over"
            ) from error


def say_length(model: PreTrainedModel, length: int) -> None:
    """Write a training length into a config that names no mechanism.

    max_position_embeddings says it, unless something is computed from that; then an entry `train_length` does.
    """
    config = model.config.get_text_config()
    vars(config).pop("train_length", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions != length:
        if has_weights_of_positions(model, length):
            if length > positions:
                raise UserError(
                    f"recipe train_length {length}: the model to start from has learned positions for {positions} tokens; "
                    f"--set train_length to at most that"
                )
        elif not turns_by_positions(model, length):
            config.max_position_embeddings = length
    if train_length_of(model.config) != length:
        config.train_length = length


def has_weights_of_positions(model: PreTrainedModel, length: int) -> bool:
    """Tell whether a model made with other max_position_embeddings has weights or buffers of other shapes."""
    config = copy.deepcopy(model.config)
    config.get_text_config().max_position_embeddings = length
    plain = next(base for base in type(model).__mro__ if base.__module__ != checkpoint.__name__)
    with torch.device("meta"):
        other = plain(config)
    one, two = (
        {
            name: tensor.shape
            for name, tensor in (*each.named_parameters(), *each.named_buffers())
            if ".ssmax." not in name
        }
        for each in (model, other)
    )
    return any(name in two and two[name] != shape for name, shape in one.items())  # a table can have been taken out


def turns_by_positions(model: PreTrainedModel, length: int) -> bool:
    """Tell whether rotary modules made with other max_position_embeddings turn otherwise, within them or beyond."""
    for path, old in rotary_modules(model).items():
        kind = kind_of(old, model)
        if told_parameters(old, kind) is None:
            continue  # not made from a config
        config: Any = copy.deepcopy(old.config)
        far = 2 * max(length, config.max_position_embeddings)
        config.max_position_embeddings = length
        for at in (length, far):
            new = type(old)(config=config, **made_with(model, path)).to(next(old.buffers()).device)
            if not torch.equal(rotation(new, at, kind), rotation(copy.deepcopy(old), at, kind)):
                return True
    return False
