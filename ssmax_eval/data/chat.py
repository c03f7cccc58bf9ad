"""Chat templates: what stands around a prompt that a chat model reads as a user's message, rendered by transformers' sandbox."""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import UserError, refuse_half_characters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO, NONE = "auto", "none"
LARGEST = 1 << 20  # bytes of a file
MESSAGES = ("ssmax-eval stands here", "ssmax-eval stands here, and this is longer. Is it?")
# a template that asks for today is always told this one, so that its prompts stay the same: Llama 3.1's own when it is told none
TODAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday", "%a": "Fri"}
TODAY |= {"%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM", "%-d": "26", "%F": "2024-07-26"}
DATE = TODAY["%F"]
NOW = "strftime_now"
# the macro stands in front of the template, in place of the function that transformers gives it
FIXED = (
    "{%- macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('{k}', '{v}')" for k, v in TODAY.items())
    + " }}{%- endmacro %}\n"
)
# behind the last question mark of any script stand the words that the answer follows
LEAD = re.compile(r"(.*[?？؟])\s*(.*)", re.DOTALL)


class Turn(NamedTuple):
    """What a template puts in front of the user's message and behind it, the assistant's header last. date: what it was told."""

    header: str
    footer: str
    date: str | None = None

    @property
    def sha256(self) -> str:
        """The hash of both: prompts of two templates are told apart by it."""
        return hashlib.sha256(f"{self.header}\0{self.footer}".encode()).hexdigest()

    def closing(self, question: str, gap: str, answer: str) -> str:
        """Return the end of a prompt: the question, the assistant's header, and as the assistant's words the answer with its lead."""
        asked, lead = parted(question)
        return f"{asked}{self.footer}{lead}{gap if lead else ''}{answer}"


@dataclass(frozen=True)
class Chat:
    """How prompts become chats. name: auto, or the file of `text`, a Jinja template; system: the system's message."""

    name: str = AUTO
    text: str | None = None
    system: str | None = None

    def turn(self, tokenizer: "PreTrainedTokenizerBase") -> Turn | None:
        """Return what stands around the user's message; None for a tokenizer that brings no template. Raises UserError."""
        template = self.text if self.text is not None else template_of(tokenizer)
        if template is None:
            if self.system is not None:
                raise UserError(
                    f"system {self.system!r}: {type(tokenizer).__name__} brings no chat template to say it in; leave it out, or "
                    "give --chat-template FILE"
                )
            return None
        return around(tokenizer, template, self.system)

    def told(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        """Return its name in rows: the template's and a hash of what it came to; None without one."""
        turn = self.turn(tokenizer)
        return None if turn is None else f"chat {self.name} {turn.sha256[:8]}"

    def record(self, tokenizer: "PreTrainedTokenizerBase") -> dict[str, str | None] | None:
        """Return what a run's record tells of it; None without a template."""
        turn = self.turn(tokenizer)
        return None if turn is None else {"template": self.name, **turn._asdict(), "sha256": turn.sha256}


def chat_asked(template: str | Path, system: str | None = None) -> Chat | None:
    """Return what --chat-template and --system ask for; None for no template. Raises UserError."""
    name = str(template)
    if name == NONE:
        if system is not None:
            raise UserError(f"system {system!r}: it is said in a chat template; add --chat-template auto")
        return None
    if name == AUTO:
        return Chat(system=system)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"chat template {name!r}: no such file; allowed are auto, none and a Jinja file")
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"chat template {name!r}: more than {LARGEST:,} bytes; give a Jinja file")
        return Chat(path.name, path.read_text("utf-8-sig"), system)
    except UnicodeDecodeError as error:
        raise UserError(f"chat template {name!r}: it is not UTF-8 text; give a Jinja file") from error
    except OSError as error:
        raise UserError(f"chat template {name!r}: cannot be read ({error.strerror})") from error


def template_of(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return the chat template that a tokenizer brings, the one called default of several; None for none. Raises UserError."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(
            f"chat template auto: {type(tokenizer).__name__} brings several and none called default; give one as --chat-template FILE"
        ) from error


def parted(question: str) -> tuple[str, str]:
    """Return a question and its lead, the words behind the last question mark, which the answer follows."""
    found = LEAD.fullmatch(question)
    return (found[1], found[2]) if found else (question, "")


@lru_cache(maxsize=16)
def around(tokenizer: "PreTrainedTokenizerBase", template: str, system: str | None) -> Turn:
    """Render a template around a user's message. Raises UserError for one that fails, or says more of the message than it is."""
    tells_date = NOW in template
    whole = FIXED + template if tells_date else template
    found = {parts(rendered(tokenizer, whole, system, message), message) for message in (*MESSAGES, MESSAGES[0])}
    if len(found) > 1:
        raise UserError(
            "chat template: what it puts around a message changes with the message or the moment, so no two runs would be alike; "
            "give another as --chat-template FILE"
        )
    header, footer = found.pop()
    return Turn(header, footer, DATE if tells_date else None)


def rendered(tokenizer: "PreTrainedTokenizerBase", template: str, system: str | None, message: str) -> str:
    """Return a chat of one message as text, up to the assistant's first word."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": message})
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a checkpoint's own code: it raises anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        left_out = "; leave --system out, if it takes none" if system is not None else ""
        raise UserError(
            f"chat template: it cannot be rendered ({why}); give another as --chat-template FILE{left_out}"
        ) from error
    assert isinstance(text, str)
    refuse_half_characters("chat template: text", text)
    return text


def parts(text: str, message: str) -> tuple[str, str]:
    """Return what stands in front of a message and behind it. Raises UserError where it is not there once."""
    if (count := text.count(message)) != 1:
        raise UserError(f"chat template: it shows the user's message {count} times; give one that shows it once")
    header, _, footer = text.partition(message)
    return header, footer
