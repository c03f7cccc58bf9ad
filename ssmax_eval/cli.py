"""The command line: parse, call, print one result. Heavy imports stay inside the commands, so `--help` is instant."""

import importlib.metadata
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands.lm_eval import FORWARDED, lm_eval_command, lm_tasks_path_command
from .commands.options import IMPORTS, import_files
from .commands.probing import register
from .commands.training import recipes_command, retrofit_command, train_command
from .errors import UserError, nearest
from .printable import printable_streams
from .probes import PROBES
from .processes import Said, launched
from .quiet import Messages, gathered, quiet_libraries, say

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
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Results and errors alone: no notes, cost or progress.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print each warning of the libraries below.")] = False,
) -> None:
    """Long-context evaluation of attention mechanisms: does a model still find key information far past its training length?"""
    messages: Messages = context.obj or Messages()
    messages.quiet, messages.verbose = quiet, verbose
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"


EVERYWHERE = ("--quiet", "--verbose")  # before or after the command
INTERRUPTED = 130  # what typer makes of Ctrl-C
STOPPED = 128 + signal.SIGTERM  # as a shell says it
STORES = (*PROBES, "run", "train")  # commands that keep what they did before it
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
    from .models.catalogue import COLUMNS, catalogue, table_line
    from .terminal import print_table

    models = catalogue(folders or [])
    if as_json:
        print(json.dumps({"models": models}))
        return
    print_table(COLUMNS, [*map(table_line, models)])


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
        print(json.dumps({"mechanisms": found}))
        return
    keys = ["mechanism", "formula", "options", "learned", "parts", "swap", "cache", "reference"]
    title = "n visible keys, L training length, z the scaled product of q and k, C(n) what the query is multiplied with"
    for each in found:
        words = {
            "options": [f"{option}=" for option in each["options"]],
            "swap": ["swap" if each["swap"] else "from scratch"],
        }
        each |= {key: " ".join((each | words)[key]) for key in ("options", "learned", "parts", "swap")}
    print_table(keys, [[each[key] for key in keys] for each in found], title)


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


def dashed(argument: str) -> str:
    """Turn an option's underscores into dashes: lm-eval's spelling is accepted too."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def spelled(given: list[str], command: str) -> list[str]:
    """Return arguments as typer takes them: with dashes, what goes with every command in front. What follows lm-eval is its own."""
    end = given.index(command) + 1 if command == "lm-eval" else len(given)
    ours = [dashed(argument) for argument in given[:end]]
    return [*sorted(ours, key=lambda argument: argument not in EVERYWHERE), *given[end:]]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's error is one line on stderr and exit code 2."""
    given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a label must not lose a run
    try:
        with printable_streams():
            code = run(given)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read us has seen enough
        sys.stdout = None
        raise SystemExit(1) from None
    raise SystemExit(code)


def run(given: list[str]) -> int:
    """Run a command and return its exit code; what goes wrong is said on stderr."""
    command = next((argument for argument in given if not argument.startswith("-")), "")
    first = False
    # what lm-eval and its libraries say is its own
    with nullcontext(Messages()) if command == "lm-eval" else gathered() as messages:
        try:
            first = launched().is_first
            with stoppable(), nullcontext() if first else silent():
                if not first and command not in SHARED:
                    return 0
                code = app(spelled(given, command), prog_name="ssmax-eval", standalone_mode=False, obj=messages)
        except Said:
            return 2
        except UserError as error:
            return failed(str(error))
        except SystemExit as stop:
            if stop.code != STOPPED:
                raise
            code = STOPPED
        except BrokenPipeError:
            raise
        except Exception as error:
            from .disk import is_full

            if isinstance(error, OSError):  # no space, no permission, a name too long: the user's to mend
                return failed(f"{error.filename or 'output'}: {error.strerror or error}; what was stored is kept")
            if is_full(error):
                return failed("output: No space left on device; what was stored is kept")
            if not hasattr(error, "format_message"):  # ours to mend
                traceback.print_exc()
                return 1
            if not first:  # which says the same
                return 2
            # click's usage errors (typer brings a click of its own, so not caught by class)
            return failed(usage(error, command))
        if code in (INTERRUPTED, STOPPED) and first:
            how = "; the same command goes on where this one stopped" if command in STORES else ""
            say(f"ssmax-eval: interrupted{how}")
        elif first:
            messages.summarise()
    return code if isinstance(code, int) else 0


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
    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop("TQDM_DISABLE", None)
        os.environ.update({} if bars is None else {"TQDM_DISABLE": bars})


def usage(error: Any, command: str) -> str:
    """Say a usage error of click, with the nearest command or option where one is misspelled."""
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    if context is None:
        return message or f"{error}; see ssmax-eval --help"
    commands = getattr(context.command, "commands", None)
    if type(error).__name__ == "NoSuchOption":
        known = [each for parameter in context.command.params for each in parameter.opts]
        what, near = f"option {error.option_name}", nearest(error.option_name, [*known, *EVERYWHERE, "--help"])
    elif commands and message.startswith("No such command"):
        what, near = f"command {command}", nearest(command, commands)
    else:
        return message or f"{error}; see ssmax-eval --help"
    return f"no such {what}{near or ';'} see {context.command_path} --help"


def failed(message: str) -> int:
    say(f"ssmax-eval: error: {' '.join(message.split())}")
    return 2


for each in app.registered_commands:
    each.epilog = f"{' and '.join(EVERYWHERE)} go with every command; see ssmax-eval --help."
