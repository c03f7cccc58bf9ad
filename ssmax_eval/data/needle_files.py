"""Where a needle of one's own comes from: options in words, a YAML file, or a ready one that ships with the package."""

import hashlib
import json
import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from ..errors import UserError, nearest
from ..rows import in_words
from .own import VALUE, OwnNeedle, Pairs

READY = Path(__file__).parent / "ready"
LARGEST = 1 << 20  # bytes of a file
MOST = 100_000  # values of a file


class NeedleFile(msgspec.Struct, forbid_unknown_fields=True):
    """What a YAML file can say; OwnNeedle tells what it means."""

    needle: str | list[str]
    question: str | list[str]
    answer: str = VALUE
    keys: list[str] | dict[str, str] = msgspec.field(default_factory=list)
    values: str | list[str] | dict[str, str] = ""
    distractors: list[str] = msgspec.field(default_factory=list)
    language: str = ""
    implied: bool = False


def own_needle(
    needle: str | None = None,
    question: str | None = None,
    answer: str | None = None,
    file: str | Path | None = None,
    value: str = "",
) -> OwnNeedle | None:
    """Return the needle that options ask for; None where they ask for none. Raises UserError.

    file: a path, or the name of a ready one. value: number, word or uuid, for {value}.
    """
    words = {"needle": needle, "question": question, "answer": answer}
    given = [name for name, text in words.items() if text is not None]
    if file is not None:
        if given:
            raise UserError(f"{given[0]} {words[given[0]]!r}: the needle file {str(file)!r} says it; give one of them")
        return read(str(file))
    if not given:
        return None
    if needle is None or question is None:
        missing = "needle" if needle is None else "question"
        raise UserError(f"{given[0]} {words[given[0]]!r}: no {missing} with it; add --{missing} TEXT")
    if answer is None and VALUE not in needle:
        raise UserError(f"needle {needle!r}: no answer with it, and no {VALUE} in it; add --answer TEXT")
    told = NeedleFile(needle, question, VALUE if answer is None else answer, values=value if VALUE in needle else "")
    return made("own", told, is_ready=False)


def ready_names() -> list[str]:
    """Return the names of the needle files that ship with the package."""
    return sorted(path.stem for path in READY.glob("*.yaml"))


def read(reference: str) -> OwnNeedle:
    """Return the needle of a YAML file, or of a ready one by its name. Raises UserError."""
    import yaml

    from ..yaml_lines import values_in

    ready = reference in ready_names()
    path = READY / f"{reference}.yaml" if ready else Path(reference).expanduser()
    if not path.is_file():
        names = ready_names()
        raise UserError(
            f"needle file {reference!r}: no such file; allowed are a YAML file and {', '.join(names)}{nearest(reference, names)}"
        )
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"more than {LARGEST:,} bytes; give a smaller one")
        # BaseLoader: all is text, so that no key becomes a number or a Boolean
        loader = yaml.BaseLoader(path.read_text("utf-8-sig"))
        if (node := loader.get_single_node()) is not None and values_in(node, {}) > MOST:
            raise UserError(f"it holds more than {MOST:,} values, those that an anchor repeats too; give fewer")
        found = None if node is None else loader.construct_document(node)
    except UserError as error:
        raise UserError(f"needle file {reference!r}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"needle file {reference!r}: it is not UTF-8 text; save it so") from error
    except OSError as error:
        raise UserError(f"needle file {reference!r}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"needle file {reference!r}: not YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(found, dict):
        raise UserError(f"needle file {reference!r}: it holds no map; write needle:, question: and answer:")
    try:
        told = msgspec.convert(found, NeedleFile, strict=False)
    except UnicodeEncodeError as error:
        raise UserError(
            f"needle file {reference!r}: a text in it holds half a character (a surrogate); write the character itself"
        ) from error
    except msgspec.ValidationError as error:
        raise UserError(
            f"needle file {reference!r}: {in_words(error)}; allowed are {', '.join(NeedleFile.__struct_fields__)}"
        ) from error
    try:
        return made(path.stem, told, ready)
    except UserError as error:
        raise UserError(f"needle file {reference!r}: {error}") from error


def made(name: str, told: NeedleFile, is_ready: bool) -> OwnNeedle:
    """Return what a file says as a needle, its name unlike that of any other: what is not ready has a hash in it."""

    def several(value: str | list[str]) -> tuple[str, ...]:
        return tuple(map(composed, [value] if isinstance(value, str) else value))

    def pairs(value: list[str] | dict[str, str]) -> Pairs:
        every = value.items() if isinstance(value, dict) else ((each, each) for each in value)
        found = tuple((composed(here), composed(there)) for here, there in every)
        if empty := next((pair for pair in found if not all(map(str.strip, pair))), None):
            raise UserError(f"key or value {empty[0]!r}: it is empty; write it, or leave it out")
        if len({here for here, _ in found}) < len(found):
            raise UserError("keys and values: two are the same; give each once")
        return found

    needle = OwnNeedle(
        name,
        several(told.needle),
        several(told.question),
        composed(told.answer),
        pairs(told.keys),
        told.values if isinstance(told.values, str) else pairs(told.values),
        several(told.distractors),
        told.language,
        told.implied,
    )
    if is_ready:
        return needle
    content: dict[str, Any] = asdict(needle)
    mark = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:6]
    return OwnNeedle(**{**vars(needle), "name": f"{name}-{mark}"})


def composed(text: str) -> str:
    """Return a text in Unicode's composed form, which tokenizers give back, without white space around it."""
    return unicodedata.normalize("NFC", text).strip()
