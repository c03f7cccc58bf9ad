"""The page as HTML, and how it is written: nothing in it runs or loads but its own script."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from .. import statistics
from ..disk import whole
from ..errors import UserError
from .context import Context
from .figures import key_of
from .prompts import fitted


def html(
    title: str,
    parts: dict[str, list[Any]],
    packed: list[dict[str, Any]],
    curves: dict[str, Any] | None,
    names: list[str],
    context: Context,
) -> str:
    """Return the page's HTML; nothing in it may run or load but the script that stands in it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ssmax_eval", "report/templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"key_of": key_of, "reached": reached, "compact": compact, "face": face}
    script, style = ((files(__package__) / "templates" / name).read_text("utf-8") for name in ("page.js", "page.css"))
    return environment.get_template("page.html.j2").render(
        title=title or heading_of(parts["sections"], parts["attentions"], parts["losses"]),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        series=[{"name": name, "key": key_of(name)} for name in dict.fromkeys(names)],
        cause_names=statistics.CAUSES,
        fewest=statistics.FEWEST,
        prompts=fitted(packed),
        curves=curves,
        records=context.records,
        records_text=json.dumps(context.records, indent=1),
        **parts,
    )


def heading_of(sections: Sequence[Any], attentions: Sequence[Any], losses: Sequence[Any]) -> str:
    """Return the heading of a page that holds these parts."""
    parts = {"needle in a haystack": sections, "attention on the needle": [*filter(None, attentions)], "loss": losses}
    text = ", ".join(name for name, part in parts.items() if part)
    return text[:1].upper() + text[1:]


def reached(line: dict[str, Any], name: str, beyond: str) -> str:
    """Write a tested length of statistics.effective_lengths."""
    value = line[name]
    return "none" if value != value else f"{'≥ ' if line[beyond] else ''}{int(value):,}"


def face(cell: dict[str, Any]) -> Markup:
    """Write what stands in a cell of a grid; a screen reader's name for it begins with the same."""
    value = "failed" if cell["value"] is None else f"{cell['value']:.2f}"
    interval = "" if cell["value"] is None else f"{cell['low']:.2f}–{cell['high']:.2f}"
    failed = f"{cell['failed']} failed" if cell["failed"] else ""
    return Markup("{} <small>{}</small>").format(value, " ".join(filter(None, [interval, failed, cell["placed"]])))


def compact(data: Any) -> Markup:
    """Write JSON that can stand in a script element: no character of it ends that, or starts a comment."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def write(out: Path, page: str) -> Path:
    """Write a page at once and whole. Raises UserError; what else is there stays."""
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"report {str(out)!r}: allowed are names that end with .html")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as half:
            half.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"report {str(out)!r}: cannot be written ({reason}); give another path") from error
    return out
