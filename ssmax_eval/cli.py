"""The command line: parse, call, print one result. Heavy imports stay inside the commands, so `--help` is instant."""

import importlib.metadata
import json
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from .commands.lm_eval import FORWARDED, lm_eval_command, lm_tasks_path_command
from .commands.options import IMPORTS, import_files
from .commands.probing import register
from .commands.training import recipes_command, retrofit_command, train_command
from .errors import UserError
from .processes import Said, launched
from .quiet import quiet_libraries

app = typer.Typer(
    name="ssmax-eval",
    help="Long-context evaluation of attention mechanisms: does a model still find key information far past its training length?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

register(app)
app.command("train")(train_command)
app.command("retrofit")(retrofit_command)
app.command("recipes")(recipes_command)
app.command("lm-eval", context_settings=FORWARDED)(lm_eval_command)
app.command("lm-tasks-path")(lm_tasks_path_command)


def print_version(asked: bool) -> None:
    """Print the version and stop, for --version."""
    if asked:
        print(f"ssmax-eval {importlib.metadata.version('ssmax-eval')}")
        raise typer.Exit


@app.callback()
def options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Long-context evaluation of attention mechanisms: does a model still find key information far past its training length?"""


INTERRUPTED = 130  # what typer makes of Ctrl-C
STOPPED = 128 + signal.SIGTERM  # as a shell says it
STORES = ("needle", "attention", "loss", "run", "train")  # commands that keep what they did before it
SHARED = (*STORES, "lm-eval")  # commands that several processes share; any other is the first one's alone


@app.command("report")
def write_report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("reports/needle.html"),
    figures: Annotated[Path | None, typer.Option(help="Also write the figures here, as SVG, PNG and PDF.")] = None,
    title: Annotated[str, typer.Option(help="The page's heading. Default: what it holds.")] = "",
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="SERIES", help="What the others are compared with. Default: softmax as trained, else the first."
        ),
    ] = None,
    attended: Annotated[
        float | None,
        typer.Option(help="Mass of a head on the answer from which it attends. Default: the runs' own, .5."),
    ] = None,
    blow_up: Annotated[
        float | None,
        typer.Option(help="Nats the haystack costs more when positions blow up. Default: the runs' own, 1."),
    ] = None,
) -> None:
    """Write one HTML page of stored runs."""
    from .report import report

    print(report(runs, out, title, figures, baseline, attended=attended, blow_up=blow_up))


@app.command("pack")
def pack_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, folders of runs, or packs.")],
    out: Annotated[Path, typer.Option(help="The file to write: NAME.zip.")],
) -> None:
    """Put stored runs into one compressed file, which report and load_results read as their folders."""
    from .packs import write_pack
    from .results import find_runs

    print(write_pack(find_runs(*runs), out))


@app.command("models")
def list_models(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR...]", help="Also look for checkpoints below these.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Models that are bundled or found: attention, size, training length."""
    from .models.catalogue import catalogue
    from .terminal import print_table

    entries = catalogue(folders or [])
    if as_json:
        print(json.dumps(entries))
        return
    columns = ["model", "attention", "parameters", "trained at", "needles found", "architecture", "licence"]
    columns += ["where", "training"]
    print_table(columns, entries)


@app.command("mechanisms")
def list_mechanisms(
    imports: IMPORTS = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Attention mechanisms for --attention: formula, options, what they learn, whether they can be swapped in, where they are from."""
    quiet_libraries()
    import_files(imports)
    from .mechanisms.spelling import told
    from .terminal import print_table

    found = told()
    if as_json:
        print(json.dumps(found))
        return
    keys = ["mechanism", "formula", "options", "learned", "parts", "swap", "cache", "reference"]
    title = "n visible keys, L training length, z the scaled product of q and k, C(n) what the query is multiplied with"
    print_table(keys, [[str(each[key]) for key in keys] for each in found], title)


@app.command("fading")
def fading(
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
    from .mechanisms.fading import by_lead, by_length
    from .terminal import print_table

    scales = list(dict.fromkeys(attention or ["softmax", "ssmax:s=0.43"]))
    lengths, leads = by_length(scales, train_length, largest), by_lead(scales, train_length, largest)
    if figure is not None:
        from .report.figures import fading_figure, save_as

        save_as(fading_figure(lengths, leads), figure)
    if as_json:
        print(json.dumps({"by_length": lengths.to_dict("records"), "by_lead": leads.to_dict("records")}))
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


def dashed(argument: str) -> str:
    """Turn an option's underscores into dashes: lm-eval's spelling is accepted too."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error is one line on stderr and exit code 2."""
    given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a label must not lose a run
    first = False
    try:
        first = launched().is_first
        with stoppable(), nullcontext() if first else silent():
            if not first and given[0] not in SHARED:
                raise SystemExit(0)
            # what goes on to lm-eval stays as it is
            spelled = given if given[:1] == ["lm-eval"] else [dashed(argument) for argument in given]
            code = app(spelled, prog_name="ssmax-eval", standalone_mode=False)
    except Said:
        raise SystemExit(2) from None
    except UserError as error:
        fail(str(error))
    except SystemExit as stop:
        if stop.code != STOPPED:
            raise
        code = STOPPED
    except BrokenPipeError:  # whoever read us has seen enough
        sys.stdout = None
        raise SystemExit(1) from None
    except OSError as error:  # no space, no permission, a name too long: the user's to mend
        fail(f"{error.filename or 'output'}: {error.strerror or error}; what was stored is kept")
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if not first:  # which says the same
            raise SystemExit(2) from None
        # click's usage errors (typer brings a click of its own, so not caught by class)
        fail(message() or f"{error}; see ssmax-eval --help")
    if code in (INTERRUPTED, STOPPED) and first:
        stored = given[0] in STORES
        how = "; the same command goes on where this one stopped" if stored else ""
        print(f"ssmax-eval: interrupted{how}", file=sys.stderr)
    raise SystemExit(code if isinstance(code, int) else 0)


@contextmanager
def stoppable() -> Iterator[None]:
    """End a block in order when the process is told to terminate, as launchers and schedulers do: what it holds is let go of."""
    if threading.current_thread() is not threading.main_thread():  # no other can be told
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise SystemExit(STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def silent() -> Iterator[None]:
    """Keep to itself what a process prints, notes and warns of, errors left out: the first process of its launch says the same."""
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def fail(message: str) -> None:
    print(f"ssmax-eval: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
