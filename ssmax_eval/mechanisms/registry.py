"""Which mechanisms there are, and how one is spelled: `NAME[:key=value,...]`.

There are this package's own, one file a family; those of installed packages (entry points of group `ssmax_eval.mechanisms`);
those of files given with --import; and those that Python code registers.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import pkgutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..position.bias import BIASES
from .mechanism import MECHANISMS, Layer, Mechanism

GROUP = "ssmax_eval.mechanisms"
LARGEST_OPTION = 1e9
LARGEST_LENGTH = 2**27  # tokens; also the longest table of learned-p
PARTS = ("query", "key", "scores", "weights", "join", "finish", "attend", "mix")
EXAMPLE = Layer(heads=2, train_length=2, key_heads=2)  # on which options are tried


def mechanisms() -> dict[str, type[Mechanism]]:
    """Return every mechanism by name, this package's own first."""
    own_families()
    installed()
    return dict(sorted(MECHANISMS.items(), key=lambda each: not is_own(each[1])))


@cache
def own_families() -> None:
    """Import every file beside this one: a family of mechanisms is one."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{package}.{module.name}")


@cache
def installed() -> None:
    """Import what installed packages bring. Raises UserError for one that cannot be imported."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            raise UserError(
                f"mechanisms of {entry.value!r}: cannot be imported ({type(error).__name__}: {error}); mend or remove the package"
            ) from error


def is_own(each: type[Any]) -> bool:
    """Tell whether a mechanism, or a position, is this package's own."""
    return each.__module__.startswith(f"{__name__.partition('.')[0]}.")


def import_file(file: str | Path) -> None:
    """Run a Python file that registers mechanisms or positions, once as long as it is not edited.

    Raises UserError if it cannot be run or registers nothing.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"import {str(file)!r}: there is no such file; give a Python file that registers a mechanism")
    path = path.resolve()
    told = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:8]
    name = f"ssmax_eval_imported_{told}_{path.stem}"
    if name in sys.modules:
        return
    before = {**MECHANISMS}, {**BIASES}
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"import {str(file)!r}: it is no Python file; its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    own_families()
    try:
        spec.loader.exec_module(module)
        if before == (MECHANISMS, BIASES):
            raise UserError(f"import {str(file)!r}: it registers no mechanism and no position; see ssmax_eval.register")
    except UserError:
        del sys.modules[name]
        raise
    except BaseException as error:
        del sys.modules[name]
        raise UserError(f"import {str(file)!r}: it cannot be run ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Attention:
    """A mechanism with options, as a user asks for it; `str` is its one spelling, keys sorted.

    train_length: L in tokens, an option of every mechanism; None is the model's.
    """

    mechanism: type[Mechanism]
    options: tuple[tuple[str, float], ...] = ()
    train_length: int | None = None

    @classmethod
    def of(cls, text: "str | Attention") -> "Attention":
        """Parse `NAME[:key=value,...]`. Raises UserError for unknown names and options, and values out of range."""
        return text if isinstance(text, Attention) else parse(text)

    def __str__(self) -> str:
        given: dict[str, float] = dict(self.options)
        if self.train_length is not None:
            given["train_length"] = self.train_length
        rest = ",".join(f"{key}={plain_number(given[key])}" for key in sorted(given))
        return f"{self.mechanism.name}:{rest}" if rest else self.mechanism.name

    @property
    def is_softmax(self) -> bool:
        """Whether it is plain softmax, which needs no mechanism on a layer."""
        return self.mechanism.name == "softmax"

    @property
    def shares(self) -> bool:
        """Whether its layers share parameters."""
        return "first" in inspect.signature(self.mechanism).parameters

    def on(self, layer: Layer, first: Mechanism | None = None) -> Mechanism:
        """Return the mechanism of one layer. first: that of the first layer."""
        shared = {"first": first} if first is not None and self.shares else {}
        return self.mechanism(layer, **dict(self.options), **shared)


def parse(text: str) -> Attention:
    """Return what `NAME[:key=value,...]` asks for."""
    name, _, rest = text.partition(":")
    if name not in MECHANISMS:
        known = mechanisms()
        if name not in known:
            raise UserError(
                f"unknown attention mechanism {name!r}; allowed: {', '.join(known)}; one of your own needs --import FILE.py"
            )
    mechanism = MECHANISMS[name]
    allowed = ["train_length", *options_of(mechanism)]
    options: dict[str, float] = {}
    if len({part.partition("=")[0] for part in rest.split(",")}) < len(rest.split(",")):
        raise UserError(f"attention {text!r}: an option is given twice; give it once")
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in allowed:
            raise UserError(f"unknown option {part!r} of attention {name}; allowed: {', '.join(allowed)}=NUMBER")
        try:
            options[key] = float(value)
        except ValueError:
            options[key] = math.nan
        if not abs(options[key]) <= LARGEST_OPTION:
            raise UserError(f"attention option {key}={value!r} of {name}: allowed are numbers up to {LARGEST_OPTION:g}")
    length = options.pop("train_length", None)
    if length is not None and not (2 <= length <= LARGEST_LENGTH and length.is_integer()):
        raise UserError(f"attention option train_length={length:g}: allowed are whole numbers, 2 to {LARGEST_LENGTH}")
    found = Attention(mechanism, tuple(sorted(options.items())), None if length is None else int(length))
    found.on(EXAMPLE)  # its own refusals, early
    return found


def plain_number(value: float) -> str:
    """Write a number so that reading it gives the same number, whole ones without a point."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def options_of(mechanism: type[Mechanism]) -> list[str]:
    """Return a mechanism's option names: the keyword-only arguments of its constructor."""
    parameters = inspect.signature(mechanism).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "first"]


def source_file(each: type[Any]) -> str | None:
    """Return the name of the file that a mechanism or position of somebody else's comes from; None for this package's own."""
    if is_own(each):
        return None
    module = sys.modules.get(each.__module__)
    file = getattr(module, "__file__", None)
    return Path(file).name if file else None


def told() -> list[dict[str, Any]]:
    """Return what there is to know of every mechanism: name, formula, options, learned, parts, swap, cache, reference, choices."""
    found = []
    for name, each in mechanisms().items():
        made = each(EXAMPLE)
        changed = [part for part in PARTS if getattr(each, part) is not getattr(Mechanism, part)]
        found.append(
            {
                "mechanism": name,
                "formula": each.summary,
                "options": " ".join(f"{option}=" for option in options_of(each)),
                "learned": " ".join(key for key, _ in made.named_parameters()),
                "parts": " ".join(changed),
                "swap": "swap" if each.swap else "from scratch",
                "cache": each.cache,
                "reference": each.reference,
                "choices": each.choices,
                "file": source_file(each),
            }
        )
    return found
