"""The model card of a trained model, from its record: data, recipe, seed, seconds, machine, loss, limits."""

from pathlib import Path

from jinja2 import Template

from ..disk import json_in, whole
from .folder import read_record

CARD = Template((Path(__file__).parent / "card.md.j2").read_text())
SHAPE = (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"), ("num_attention_heads", "n_head"))
# texts that leave the weights free
FREE = {"generated": "generated prose", "bible": "World English Bible (public domain)"}


def write_card(folder: Path, licence: str | None = None, text: str | None = None, notes: str = "") -> None:
    """Write README.md into a trained model's folder.

    licence: of the weights, as the texts they saw allow; text: those texts and their licences, in words.
    """
    record = read_record(folder)
    job = record["job"]
    source = job["recipe"]["text"]
    config = json_in(folder / "config.json")
    free = source in FREE and job["start"] is None
    how = "swapped in after training" if "retrofitted" in record else ""
    if job["swap_to"]:
        how = f"swapped in for the last {100 * job['swap_fraction']:g}% of the steps"
    page = CARD.render(
        name=folder.name,
        record=record,
        recipe=job["recipe"],
        config=config,
        blocks=job["recipe"].get("blocks") or config["model_type"].removeprefix("ssmax_"),
        shape=[config.get(one, config.get(other)) for one, other in SHAPE],
        environment=record["environment"],
        mechanism=record.get("retrofitted") or record["attention"],
        how=how,
        licence=licence or ("cc0-1.0" if free else "other"),
        text=text or FREE.get(source, source),
        signs=record.get("signs", {}).get("told", []),
        notes=notes,
    )
    with whole(folder / "README.md") as half:
        half.write_text(page)
