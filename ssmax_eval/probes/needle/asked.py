"""What options ask for: the parameters of a grid, with a needle of one's own or a task of ours."""

from typing import Any

from ...data.chat import chat_asked
from ...data.needle_files import own_needle
from ...data.needles import Needle
from ...data.own import VALUE, OwnNeedle
from ...errors import UserError
from ..by_model import default_lengths, default_task
from ..options import several
from .options import GridOptions


def needle_asked(options: GridOptions) -> OwnNeedle | None:
    """Return the needle of its own that options ask for, None for a task of ours. Raises UserError."""
    own = own_needle(options.needle, options.question, options.answer, options.needle_file, options.value)
    if own is None:
        return None
    what = "needle" if options.needle_file is None else f"needle file {options.needle_file!r}"
    if options.task is not None:
        raise UserError(f"task {options.task!r}: {what} asks its own question; leave one of them out")
    if options.ask != Needle.ask:
        raise UserError(f"ask {options.ask!r}: of task multikey; {what} has one question a prompt; leave it out")
    if options.needles != Needle.needles:
        raise UserError(
            f"needles {options.needles}: of our multi tasks; {what} has as many facts as it has distractors, and one"
        )
    if options.needle_file is not None and options.value != Needle.value:
        raise UserError(
            f"value {options.value!r}: {what} says its values; leave it out, or write values: {options.value}"
        )
    if options.needle is not None and VALUE not in options.needle and options.value != Needle.value:
        raise UserError(
            f"value {options.value!r}: {what} has no {VALUE}; leave it out, or write {VALUE} into the needle"
        )
    return own


def parameters_of(models: Any, options: GridOptions) -> dict[str, Any]:
    """Return the parameters of a grid of needle prompts that options ask for. Raises UserError."""
    lengths = options.context_lengths
    return {
        "context_lengths": default_lengths(models, options.trust_remote_code) if lengths is None else tuple(lengths),
        "depth_percents": tuple(options.depth_percents),
        "trials": options.trials,
        "needle": needle_asked(options)
        or Needle(
            options.task or ("multikey" if options.ask == "all" else default_task(models)),
            options.value,
            options.needles,
            options.ask,
        ),
        "haystack": options.haystack,
        "controls": tuple(several(options.controls)),
        "seed": options.seed,
        "limit": options.limit,
        "limit_tokens": options.limit_tokens,
        "chunk": options.chunk,
        "plan_version": options.plan,
        "chat": chat_asked(options.chat_template, options.system),
    }
