"""The model card of a trained model, from its record: data, recipe, seed, seconds, machine, loss, limits."""

from pathlib import Path
from typing import Any

from jinja2 import Template

from .train import read_record

CARD = Template((Path(__file__).parent / "card.md.j2").read_text())


def write_card(folder: Path, licence: str = "cc0-1.0", text: str | None = None, notes: str = "") -> None:
    """Write README.md into a trained model's folder. licence: of the weights, as the texts they saw allow."""
    record = read_record(folder)
    job: dict[str, Any] = record["job"]
    how = "swapped in after training" if "retrofitted" in record else ""
    if job["swap_to"]:
        how = f"swapped in for the last {100 * job['swap_fraction']:g}% of the steps"
    page = CARD.render(
        name=folder.name,
        record=record,
        recipe=job["recipe"],
        environment=record["environment"],
        law=record.get("retrofitted") or job["swap_to"] or job["attention"],
        how=how,
        licence=licence if job["recipe"]["text"] == "generated" or text else "other",
        text=text or ("generated prose" if job["recipe"]["text"] == "generated" else job["recipe"]["text"]),
        notes=notes,
    )
    (folder / "README.md").write_text(page)
