"""What is checked before a probe reads a prompt (parameters, tokenizer, positions), and what one should know of the rows after."""

import re
from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.chat import Chat, template_of
from ..data.haystacks import Document, Haystack
from ..data.needles import FAR_OFF, Asked
from ..data.own import OwnNeedle
from ..errors import UserError, nearest
from ..position.learned import position_end
from ..readers.parts import refuse_unlike_parts
from ..rows import Fields


def check_model(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    asked: int,
    positions: int,
    chunk: int | None,
) -> None:
    """Raise UserError for what a model cannot read: another's tokenizer, more positions than it has, parts of a prompt.

    model: None for one that is not in this process: what it cannot read, its samples say.
    """
    if model is not None:
        check_tokenizer(model, tokenizer, asked, positions)
        refuse_unlike_parts(model, chunk, asked - 1)
    elif chunk is not None:
        raise UserError(f"chunk {chunk}: a function or a server reads as it does; leave it out")


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int, positions: int) -> None:
    """Raise UserError if the tokenizer is not the model's, or its positions do not reach as far as is asked."""
    table = getattr(model.get_input_embeddings(), "weight", None)
    if not isinstance(table, Tensor):  # as Perceiver, whose latents have that name
        raise UserError(
            f"{type(model).__name__} has no table of token embeddings that a tokenizer could be checked against; use another model"
        )
    rows = table.shape[0]
    if (largest := max(tokenizer.get_vocab().values())) >= rows:
        raise UserError(
            f"tokenizer: its largest token id is {largest}, but {type(model).__name__} has {rows} embeddings; "
            "it is not this model's tokenizer"
        )
    limit = position_end(model)
    if limit is not None and positions > limit:
        raise UserError(
            f"context length {asked}: {type(model).__name__} has positions for {limit} tokens; "
            f"give at most {limit - positions + asked}"
        )


def refuse_chat_elsewhere(model: PreTrainedModel | None, chat: Chat | None) -> None:
    """Raise UserError if a template is asked for where the model is not in this process, and makes its own chats."""
    if model is None and chat is not None:
        raise UserError(
            f"chat template {chat.name}: a function or a server makes chats of its own; give --chat-template none"
        )


def chat_advice(chat: Chat | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """Say that a model's template is not used, or that it has none to use; nothing where it is as asked."""
    if chat is None:
        has_one = template_of(tokenizer) is not None
        return (
            "it brings a chat template and is read without; --chat-template auto reads it as a chat" if has_one else ""
        )
    return "it brings no chat template, so it is read without" if chat.turn(tokenizer) is None else ""


def require(condition: bool, what: str, value: object, allowed: str) -> None:
    if not condition:
        near = nearest(value, re.split(", | or ", allowed)) if isinstance(value, str) else ""
        raise UserError(f"{what}{'' if value == '' else f' {value!r}'}: allowed are {allowed}{near}")


def depths_off(haystack: str, rows: Sequence[Fields]) -> str:
    """Say how many needles stand further from their depth than FAR_OFF; nothing where none does."""
    pairs = [(row["depth_percent"], row["realised_depth_percent"]) for row in rows]
    known = [(abs(asked - real), asked, real) for asked, real in pairs if asked is not None and real is not None]
    far = [each for each in known if each[0] > FAR_OFF]
    if not far:
        return ""
    _, asked, real = max(far)
    return (
        f"haystack {haystack}: {len(far)} of {len(known)} needles stand more than {FAR_OFF} points from the depth asked "
        f"(the furthest: asked {asked:g}, placed {real:.0f}), for want of sentence ends there; realised_depth_percent has each"
    )


def text_again(haystack: str, sentences: int, rows: Sequence[Fields]) -> str:
    """Say how often the longest prompt repeats a text of so many sentences; nothing where none does."""
    longest = max((row["haystack_sentences"] or 0 for row in rows), default=0)
    if longest <= sentences:
        return ""
    return (
        f"haystack {haystack}: a text of {sentences} sentence{'s' if sentences > 1 else ''}, which the longest prompt repeats "
        f"{longest / sentences:.1f} times; a repeated text is an easier haystack, so give a longer one"
    )


def another_language(needle: str, language: str, haystack: str) -> str:
    """Say that a needle is in another language than prose that is made here; nothing where it is not, or where that is unknown."""
    if haystack not in ("text", "noise", "repeat", "bible") or re.split(r"[-_ ]", language.lower())[0] in (
        "",
        "en",
        "eng",
        "english",
    ):
        return ""
    return (
        f"needle {needle}: its language is {language}, haystack {haystack} is English, and a sentence of another language stands "
        "out; --haystack FILE takes a text of its own language"
    )


def cut_short(rows: Sequence[Fields]) -> str:
    """Say how many answers ended at the most tokens that are written; nothing where none did, or nothing was."""
    told = [row["cut"] for row in rows if row.get("cut") is not None]
    return f"{sum(told)} of {len(told)} answers ended at the most tokens that are written" if any(told) else ""


def notes(name: str, haystack: Haystack, needle: Asked, rows: Sequence[Fields]) -> str:
    """Say what one should know of rows that were just read: of needles' places, of the text, of the needle's language."""
    again = text_again(name, len(haystack.every), rows) if isinstance(haystack, Document) else ""
    foreign = another_language(needle.name, needle.language, name) if isinstance(needle, OwnNeedle) else ""
    return "; ".join(filter(None, [depths_off(name, rows), again, foreign, cut_short(rows)]))
