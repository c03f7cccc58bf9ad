"""The commands on stored runs: report, pack."""

from pathlib import Path
from typing import Annotated

import typer


def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("reports/needle.html"),
    figures: Annotated[Path | None, typer.Option(help="Also write the figures here, as SVG, PNG and PDF.")] = None,
    tables: Annotated[Path | None, typer.Option(help="Also write every table here, as CSV and LaTeX.")] = None,
    title: Annotated[str, typer.Option(help="The page's heading. Default: what it holds.")] = "",
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="SERIES", help="What the others are compared with. Default: softmax as trained, else the first."
        ),
    ] = None,
    attended: Annotated[
        float | None,
        typer.Option(
            help="Mass of a head on the answer from which it attends. Default: .5; of older runs, what they record."
        ),
    ] = None,
    blow_up: Annotated[
        float | None,
        typer.Option(
            help="Nats the haystack costs more when positions blow up. Default: 1; of older runs, what they record."
        ),
    ] = None,
) -> None:
    """Write one HTML page of stored runs."""
    from ..report import report

    print(report(runs, out, title, figures, baseline, attended=attended, blow_up=blow_up, tables_folder=tables))


def pack_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, folders of runs, or packs.")],
    out: Annotated[Path, typer.Option(help="The file to write: NAME.zip.")],
) -> None:
    """Put stored runs into one compressed file, which report and load_results read as their folders."""
    from ..packs import write_pack
    from ..results import find_runs

    print(write_pack(find_runs(*runs), out))
