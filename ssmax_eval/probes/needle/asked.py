"""What options ask for in words: a needle of one's own."""

from ...data.needle_files import own_needle
from ...data.needles import Needle
from ...data.own import OwnNeedle
from ...errors import UserError
from .options import GridOptions


def needle_asked(options: GridOptions) -> OwnNeedle | None:
    """Return the needle of its own that options ask for, None for a task of ours. Raises UserError."""
    own = own_needle(options.needle, options.question, options.answer, options.needle_file, options.value)
    if own is None:
        return None
    what = "needle" if options.needle_file is None else f"needle file {options.needle_file!r}"
    if options.task is not None:
        raise UserError(f"task {options.task!r}: {what} asks its own question; leave one of them out")
    if options.needles != Needle.needles:
        raise UserError(
            f"needles {options.needles}: of our multi tasks; {what} has as many facts as it has distractors, and one"
        )
    if options.needle_file is not None and options.value != Needle.value:
        raise UserError(
            f"value {options.value!r}: {what} says its values; leave it out, or write values: {options.value}"
        )
    return own
