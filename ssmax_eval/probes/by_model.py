"""Defaults that hang on the models: the task they learned, lengths that go past their training length, the near context."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import UserError, reading
from ..mechanisms.layers import layer_indices
from ..mechanisms.train_length import train_length_of
from ..models.sources import ModelSource, is_foreign, resolve
from ..models.subjects import is_one, unwrapped
from .defaults import KEY_CONTEXT, LONGEST, UNKNOWN, WINDOW

LENGTHS = 5  # of a default grid, factors of two apart
HOLDS = 256  # tokens that hold needle, question and answer of any task with any tokenizer, bytes too

log = logging.getLogger(__name__)


def default_task(models: Any) -> str:
    """Return the task that these models of our recipes learned; single for any other."""
    named = [model for model in members(models) if isinstance(model, str)]
    tasks = {str(resolve(reference).training().get("task", "single")) for reference in named}
    if len(tasks) > 1:
        raise UserError(f"task: the models learned different ones ({', '.join(sorted(tasks))}); say which: --task NAME")
    return tasks.pop() if tasks else "single"


def default_lengths(models: Any, trust_remote_code: bool = False) -> tuple[int, ...]:
    """Return five context lengths, factors of two apart, that go past the models' training length, in tokens.

    1/2 to 8 times the longest training length among them; 1 to 16 times where half of it is under HOLDS tokens, and would not
    hold needle and question. Where a model's positions end (a table of them, as GPT-2's): from that end down by halves,
    those under HOLDS left out. Of an unknown training length: UNKNOWN. A note says where a guess was made.
    """
    found = [(name_of(model), training_length(model)) for model in members(models)]
    known = [length for _, length in found if length]
    if not found:
        note(f"no model to ask for its training length: context lengths are {UNKNOWN[0]} to {UNKNOWN[-1]} tokens")
    if unknown := [name for name, length in found if not length]:
        others = "the others'" if known else f"{UNKNOWN[0]} to {UNKNOWN[-1]} tokens"
        note(f"training length of {', '.join(unknown)}: not told; context lengths are {others} (--context-lengths)")
    ends = [end for model in members(models) if (end := position_end_of(model, trust_remote_code))]
    if ends:
        halves = [min(ends) >> k for k in reversed(range(LENGTHS))]
        return tuple(length for length in halves if length >= min(HOLDS, halves[-1]))
    if not known:
        return UNKNOWN
    if len(set(known)) > 1:
        lengths = ", ".join(f"{name} {length:,}" for name, length in found if length)
        note(f"training lengths differ ({lengths}): context lengths are from the longest")
    longest = max(known)
    shortest = longest if longest < 2 * HOLDS else longest // 2
    return tuple(shortest << k for k in range(LENGTHS))


def default_window(models: Any) -> int:
    """Return the near context that the context gain leaves: the models' shortest training length, at most WINDOW tokens."""
    lengths = [training_length(model) for model in members(models)]
    return min([WINDOW, *filter(None, lengths)])


def default_key_context(models: Any) -> int:
    """Return the near context without which a token is key: the models' shortest training length, at most KEY_CONTEXT tokens."""
    lengths = [training_length(model) for model in members(models)]
    return min([KEY_CONTEXT, *filter(None, lengths)])


def default_layers(models: Any, trust_remote_code: bool = False) -> tuple[int, ...]:
    """Return the layers that attend of these models, by their index. Raises UserError where models differ, or nobody can tell."""
    from ..models.shape import blank

    found = set()
    for model in members(models):
        built = blank(resolve(model), trust_remote_code) if isinstance(model, str) else model[0]
        found.add(None if built is None else tuple(sorted(set(layer_indices(built).values()))))
    if len(found) != 1 or None in found:
        why = "the models' layers differ" if len(found) > 1 else "the model does not tell its layers"
        raise UserError(f"layers all: {why}; say which: --layers 0,1")
    return found.pop() or ()


def members(models: Any) -> list[Any]:
    """Return each of the models that can be asked: one reference or (model, tokenizer), several, or {label: one}.

    Functions and servers tell neither what they learned nor at which length.
    """
    every = [models] if is_one(models) else list(models.values()) if isinstance(models, dict) else list(models)
    return [each if isinstance(each, str) else unwrapped(each) for each in every if not is_foreign(each)]


def name_of(model: Any) -> str:
    return resolve(model).label if isinstance(model, str) else type(model[0]).__name__


def training_length(model: Any) -> int | None:
    """Return the tokens that a reference or (model, tokenizer) was trained at, from its config or .gguf metadata; None if unknown.

    A config.json that leaves it out is one of its class's own length, as for transformers and for mechanisms.
    """
    if isinstance(model, str):
        with reading(f"model {model!r}"):
            source = resolve(model)
            length = train_length_of(config_of(source)) or class_length(source)
    else:
        length = train_length_of(model[0].config.to_dict())
    # beyond, its grid would be longer than any prompt: not a length that anybody trained at
    return length if length is not None and 2 <= length <= LONGEST >> 3 else None


def class_length(source: ModelSource) -> int | None:
    """Return the training length of the config as transformers builds it; None where it cannot without code, or has none."""
    from ..models.config import load_config

    if source.is_gguf:
        return None
    try:
        return train_length_of(load_config(source))
    except UserError:  # is told where the model is loaded
        return None


def config_of(source: ModelSource) -> dict[str, Any]:
    return source.config() or gguf_config(source.path, source.path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def gguf_config(path: Path, changed: int) -> dict[str, Any]:
    """Return what a .gguf file's metadata tell of its config; `changed` is its time, so that a new file is read again."""
    from ..models.catalogue import read_gguf

    try:
        return read_gguf(path)[0]
    except Exception as error:  # what is no .gguf file fails in many ways
        raise UserError(f"model {str(path)!r}: its .gguf metadata cannot be read ({error})") from error


def position_end_of(model: Any, trust_remote_code: bool = False) -> int | None:
    """Return after how many tokens a model has no positions, None where nothing ends them or nobody can tell without its weights."""
    from ..models.shape import blank
    from ..position.learned import position_end

    if not isinstance(model, str):
        return position_end(model[0])
    source = resolve(model)
    if source.is_gguf:  # to build the model from it takes seconds more
        config = config_of(source)
        return config["max_position_embeddings"] if config.get("learned_positions") else None
    with reading(f"model {model!r}"):
        built = blank(source, trust_remote_code)
        return None if built is None else position_end(built)


def note(text: str) -> None:
    log.warning("ssmax-eval: note: %s", text)
