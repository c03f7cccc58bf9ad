"""The commands that list what there is: models, mechanisms, and what query scales do to a score."""

import json
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from textwrap import TextWrapper
from typing import Annotated, Any

import typer

from ..quiet import quiet_libraries
from .options import IMPORTS, import_files


def models_command(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR...]", help="Also look for checkpoints below these.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Models that are bundled or found: attention, size, training length."""
    from ..models.catalogue import COLUMNS, catalogue, table_line
    from ..terminal import print_table

    models = catalogue(folders or [])
    if as_json:
        print(json.dumps({"models": models}))
        return
    print_table(COLUMNS, [*map(table_line, models)])


def mechanisms_command(
    imports: IMPORTS = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Attention mechanisms for --attention: formula, options, source, what is ours, what they change and learn, how they can be used."""
    quiet_libraries()
    import_files(imports)
    from ..mechanisms.spelling import EXAMPLE, told
    from ..terminal import print_table

    found = told()
    if as_json:
        print(json.dumps({"mechanisms": found, "example_layer": asdict(EXAMPLE)}))
        return
    title = (
        "n visible keys, L training length, t distance in tokens, z the scaled product of q and k, C(n) what multiplies q;\n"
        f"numbers learned are those of a layer of {EXAMPLE.heads} heads of {EXAMPLE.head_dim} channels, L {EXAMPLE.train_length:,}"
    )
    lines = [line for each in found for line in lines_of(each)]
    print_table(["mechanism", "formula, options, source, what is ours", "changes", "learns", "use"], lines, title)


def lines_of(told: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a mechanism's lines of the table, wrapped such that the table fits into 120 columns."""
    defaults = {name: f"{at:g}" if isinstance(at, int | float) else str(at) for name, at in told["options"].items()}
    options = [name if told["options"][name] is None else f"{name}={at}" for name, at in defaults.items()]
    paragraphs = {
        "": told["formula"],
        "options: ": ", ".join(options),
        "source: ": told["reference"] or told["file"],
        "ours: ": told["choices"],
    }
    folded = TextWrapper(51, subsequent_indent="  ", break_on_hyphens=False)
    text = [line for what, said in paragraphs.items() if said for line in folded.wrap(what + said)]
    learned = [*told["learned"], f"{told['learned_numbers']:,} numbers"] if told["learned"] else []
    flags = {"signed": told["signed"], "sparse": told["sparse"], "sum not 1": not told["normalised"]}
    use = [
        "swap" if told["swap"] else "from scratch",
        *(["whole texts"] if told["cache"] == "whole" else []),
        *(flag for flag, holds in flags.items() if holds),
    ]
    return [*zip_longest([told["mechanism"]], text, told["parts"], learned, use, fillvalue="")]


def fading_command(
    attention: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:key=value,...]", help="Query scales; repeatable. Default: softmax and ssmax:s=0.43."
        ),
    ] = None,
    train_length: Annotated[int, typer.Option(help="L of scales that know a training length.")] = 1024,
    largest: Annotated[int, typer.Option(help="The largest n.")] = 100_000,
    figure: Annotated[Path | None, typer.Option(help="Write the plot here: .svg, .png or .pdf.")] = None,
    imports: IMPORTS = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """What query scales do to one large score among n, without a model: Figure 1 of the paper and the weight by lead, as a plot too."""
    quiet_libraries()
    import_files(imports)
    from ..mechanisms.fading import by_lead, by_length
    from ..terminal import print_table

    scales = list(dict.fromkeys(attention or ["softmax", "ssmax:s=0.43"]))
    lengths, leads = by_length(scales, train_length, largest), by_lead(scales, train_length, largest)
    if figure is not None:
        from ..report.figures import fading_figure, save_as

        save_as(fading_figure(lengths, leads), figure)
    if as_json:
        tables = {"by_length": lengths.to_dict("records"), "by_lead": leads.to_dict("records")}
        print(json.dumps(tables | {"figure": None if figure is None else str(figure)}))
        return
    for table, column, form, title in (
        (lengths, "n", "{:,.0f}", "weight of the largest score, +3 among -2"),
        (leads, "lead", "{:g}", f"weight of a score by its lead over all others, n = {largest:,}"),
    ):
        wide = table[table["n"] == largest] if column == "lead" else table
        grid = wide.pivot(index=column, columns="attention", values="weight")[scales]
        print_table(
            [column, *scales],
            [
                [form.format(at), *(f"{w:.4f}" for w in line)]
                for at, line in zip(grid.index, grid.to_numpy(), strict=True)
            ],
            title,
        )
    if figure is not None:
        print(figure)
