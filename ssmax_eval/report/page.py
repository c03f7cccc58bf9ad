"""The page as HTML, and how it is written: nothing in it runs or loads but its own script."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..disk import whole
from ..errors import UserError
from .context import Context
from .figures import key_of
from .section import Found

FIRST = 10  # of lead_place: what always leads


def html(title: str, found: Sequence[Found], names: Sequence[str], context: Context) -> str:
    """Return the page's HTML. names: of the series on it. Nothing in it may run or load but the script that stands in it."""
    script, style = ((files(__package__) / "templates" / name).read_text("utf-8") for name in ("page.js", "page.css"))
    data: dict[str, Any] = {"causes": [], "tasks": []}
    for each in found:
        data |= each.data()
    return context.render(
        "report/templates/page.html.j2",
        title=title or heading_of(found),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        series=[{"name": name, "key": key_of(name)} for name in dict.fromkeys(names)],
        leads=leads(found, context),
        parts=[each.page(context) for each in found],
        data=data,
        records=context.records,
        records_text=json.dumps(context.records, indent=1),
    )


def leads(found: Sequence[Found], context: Context) -> list[Markup]:
    """Return what stands at the top of the page; what leads only where nothing else does is left out elsewhere."""
    in_order = sorted(found, key=lambda each: each.section.lead_place)
    first = [each.lead(context) for each in in_order if each.section.lead_place <= FIRST]
    return first if any(first) else [each.lead(context) for each in in_order if each.section.lead_place > FIRST]


def heading_of(found: Sequence[Found]) -> str:
    """Return the heading of a page that holds these parts."""
    text = ", ".join(each.section.heading for each in found if each.section.heading)
    return text[:1].upper() + text[1:]


def check_name(out: Path) -> None:
    """Raise UserError for a page's path that nothing could be written to; to be asked before long work."""
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"report {str(out)!r}: allowed are names that end with .html")
    if out.is_dir():
        raise UserError(f"report {str(out)!r}: it is a folder; give another path")


def write(out: Path, page: str) -> Path:
    """Write a page at once and whole. Raises UserError; what else is there stays."""
    check_name(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole(out) as half:
            half.write_text(page, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"report {str(out)!r}: cannot be written ({reason}); give another path") from error
    return out
