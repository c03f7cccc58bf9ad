"""Models that are no transformers models of this process: a function of a user's own, or a model behind a server's endpoint."""

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..own_file import file_of, run_file
from .identity import tokenizer_state
from .known_code import code_hash
from .load import load_tokenizer
from .sources import FUNCTION, PAIR, label_of, resolve

Answer = Callable[[str, str], str]


@dataclass(frozen=True)
class Counting:
    """The tokenizer that counts a foreign model's prompts. whose: who named it, for the record."""

    tokenizer: PreTrainedTokenizerBase
    reference: str
    whose: str

    @property
    def sha256(self) -> str:
        """Hash all that makes its ids."""
        state = json.dumps(tokenizer_state(self.tokenizer), sort_keys=True, default=str)
        return hashlib.sha256(state.encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """Return what a run's record tells of it."""
        named = Path(self.reference).name if Path(self.reference).exists() else self.reference
        return {"reference": named, "named_by": self.whose, "sha256": self.sha256}


@dataclass(frozen=True)
class Function:
    """A callable `answer(context, question) -> text`. file: of its code, with its sha256; None for what is in no file."""

    answer: Answer
    name: str
    counting: Counting
    file: tuple[str, str] | None

    def record(self) -> dict[str, Any]:
        """Return what a run's record tells of it."""
        told = {} if self.file is None else {"file": self.file[0], "file_sha256": self.file[1]}
        return {"kind": "function", "function": self.name, **told, "tokenizer": self.counting.record()}


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A model that a server completes texts with. url: of its API, without credentials. name: the model's, there.

    Two of one URL are not the same: the server may have been started anew between them.
    """

    url: str
    name: str
    counting: Counting

    def record(self) -> dict[str, Any]:
        """Return what a run's record tells of it."""
        return {"kind": "endpoint", "url": self.url, "model": self.name, "tokenizer": self.counting.record()}


Foreign = Function | Endpoint


def fingerprint_of(foreign: Foreign) -> str:
    """Return 16 hex digits of a sha256 over what identifies it: URL and name, or file and name, or code; and the tokenizer."""
    told = foreign.record()
    told["tokenizer"] = foreign.counting.sha256
    if isinstance(foreign, Function) and foreign.file is None:
        answer = foreign.answer
        told["code"] = code_hash(answer if inspect.isfunction(answer) else type(answer))
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def foreign_named(reference: str, tokenizer: str | None) -> tuple[str, Foreign]:
    """Return the label and the foreign model of a reference: `[LABEL=]FILE.py:function`, `module:function` or `http(s)://HOST/v1#MODEL`.

    A function's file or module is run. tokenizer: a reference, whose prompts are counted with. Raises UserError.
    """
    label, reference = label_of(reference)
    if reference.startswith(("http://", "https://")):
        return label or reference.partition("#")[2].rpartition("/")[2], endpoint(reference, tokenizer)
    found = FUNCTION.fullmatch(reference)
    assert found is not None
    file, module, name = found["file"], found["module"], found["name"]
    held: Any = run_named(Path(file), reference) if file else run_module(module, reference)
    for part in name.split("."):
        held = getattr(held, part, None)
        if held is None:
            raise UserError(f"model {reference!r}: there is no {name} in it; name a function that is: FILE.py:function")
    given = f"{Path(file).stem if file else module}:{name}"
    return label or given, function(held, given, tokenizer)


def run_named(path: Path, reference: str) -> Any:
    """Run a Python file that a user named, once, and return its module."""
    if not path.expanduser().is_file():
        raise UserError(f"model {reference!r}: there is no file {path.name}; give FILE.py:function")
    path = path.expanduser().resolve()
    content = path.read_bytes()
    key = hashlib.sha256(f"{path}\0".encode() + content).hexdigest()[:8]
    module = f"ssmax_eval_read_{key}_{path.stem}"
    if module not in sys.modules:
        try:
            run_file(path, content, module)
        except Exception as error:
            raise UserError(f"model {reference!r}: it cannot be run ({type(error).__name__}: {error})") from error
    return sys.modules[module]


def run_module(name: str, reference: str) -> Any:
    """Import a module that a user named."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UserError(
            f"model {reference!r}: {name} cannot be imported ({type(error).__name__}: {error}); a file is named with its end: {name}.py:…"
        ) from error


def function(answer: Any, name: str, tokenizer: str | None) -> Function:
    """Return a callable as a model. Its prompts are counted by its attribute `tokenizer`, else by the one named, else by a bundled one."""
    if not callable(answer):
        raise UserError(f"model {name!r}: it is no function; give answer(context, question) -> text")
    own = getattr(answer, "tokenizer", None)
    if isinstance(own, PreTrainedTokenizerBase):
        counting = Counting(own, type(own).__name__, "the function's own")
    elif own is not None and not isinstance(own, str):
        raise UserError(
            f"model {name!r}: its attribute tokenizer is a {type(own).__name__}; allowed are a transformers tokenizer or a reference"
        )
    elif own is not None:
        counting = Counting(tokenizer_of(own), own, "the function's own")
    elif tokenizer is not None:
        counting = Counting(tokenizer_of(tokenizer), tokenizer, "the user")
    else:
        counting = Counting(tokenizer_of(PAIR[0]), PAIR[0], "nobody: a bundled one")
    return Function(answer, name, counting, home_of(answer))


def home_of(answer: Any) -> tuple[str, str] | None:
    """Return the name and sha256 of the file that a function stands in by its name; None for objects, closures and what was typed in.

    None for what has been edited since, too.
    """
    if not inspect.isfunction(answer) or "<" in answer.__qualname__ or answer.__closure__:
        return None
    found = file_of(answer)
    return None if found is None else (found[0].name, found[1])


def endpoint(reference: str, tokenizer: str | None) -> Endpoint:
    """Return the model behind `http(s)://HOST[:PORT]/v1#MODEL`. Raises UserError, which never shows credentials."""
    url, _, name = reference.partition("#")
    try:
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}".rstrip("/")
    except ValueError:  # whose text may show a password
        raise UserError("model: its URL cannot be read; write http://HOST:PORT/v1#MODEL") from None
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"model {shown}: credentials and queries in a URL would be stored; give the key as OPENAI_API_KEY in the environment"
        )
    if not name or not parts.hostname:
        raise UserError(
            f"model {shown}: it names no {'model' if parts.hostname else 'host'}; write http://HOST:PORT/v1#MODEL"
        )
    if tokenizer is None:
        raise UserError(
            f"model {shown}#{name}: its prompts have to be counted by its own tokenizer; name a model that has it: --tokenizer REF"
        )
    return Endpoint(shown, name, Counting(tokenizer_of(tokenizer), tokenizer, "the user"))


@lru_cache(maxsize=8)
def tokenizer_of(reference: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model's reference. Raises UserError."""
    return load_tokenizer(resolve(reference), trust_remote_code=False)
