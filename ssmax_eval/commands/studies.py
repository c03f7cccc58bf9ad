"""The commands that combine trainings and runs: league."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..quiet import quiet_libraries
from .options import IMPORTS, import_files


def league_command(
    recipe: Annotated[
        str, typer.Option(help="What every mechanism is trained by; `ssmax-eval recipes` lists them.")
    ] = ("league"),
    seeds: Annotated[str, typer.Option(metavar="N,...", help="Training seeds.")] = "0,1,2",
    attention: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:key=value,...]",
            help="A mechanism of the league; repeatable. softmax and ssmax are always in it. Default: every one that training changes.",
        ),
    ] = None,
    rope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:key=value,...]",
            help="Train this one with full RoPE too, and read it at the best theta; repeatable.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Prompts at each of 11 depths of each length.")] = 3,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; repeatable.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Models to train at a time, on a processor.")] = 1,
    models_path: Annotated[Path, typer.Option(help="Where models are trained, a folder each.")] = Path(
        "results/models"
    ),
    output_path: Annotated[Path, typer.Option(help="Where runs and measured times are stored.")] = Path(
        "results/league"
    ),
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("reports/league.html"),
    figures: Annotated[Path | None, typer.Option(help="Also write the figure here, as SVG, PNG and PDF.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    imports: IMPORTS = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Train every attention mechanism by one recipe, measure all alike, and write one page; a stopped league goes on."""
    quiet_libraries()
    import_files(imports)
    from ..models.subjects import RunOptions
    from ..studies.league import League, entries
    from ..studies.standings import written
    from ..terminal import print_found
    from ..training.recipes import recipe as find

    chosen = find(recipe).changed(dict(each.partition("=")[::2] for each in change or []))
    try:
        numbers = [int(each) for each in seeds.split(",")]
    except ValueError:
        raise UserError(f"seeds {seeds!r}: allowed are whole numbers separated by commas") from None
    league = League(chosen, entries(chosen, attention or (), rope or ()), numbers, trials)
    options = RunOptions(device=device, output_path=output_path)
    findings, page = written(league, models_path, options, out, figures, jobs)
    print_found(findings, {"report": str(page)}, as_json)
