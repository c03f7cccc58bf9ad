"""The command line: parse, call, print one result. Heavy imports stay inside the commands, so `--help` is instant."""

import importlib.metadata
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Annotated, Any

import typer

from .commands.listing import fading_command, mechanisms_command, models_command
from .commands.lm_eval import FORWARDED, lm_eval_command, lm_tasks_path_command
from .commands.options import Once
from .commands.probing import register
from .commands.stored import pack_command, report_command
from .commands.studies import advise_command, league_command, paper_command, reach_command
from .commands.training import recipes_command, retrofit_command, train_command
from .errors import UserError, failed_import, first_line, is_out_of_memory, nearest, origins
from .launch import launched
from .printable import inner, nowhere, occupy, printable_streams
from .probes import PROBES
from .processes import Lost, Said
from .quiet import Messages, gathered, say
from .stopping import INTERRUPTED, STOPPED, interruption_in, stoppable

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
app.command("league")(league_command)
app.command("paper")(paper_command)
app.command("advise")(advise_command)
app.command("reach")(reach_command)
app.command("lm-eval", context_settings=FORWARDED)(lm_eval_command)
app.command("lm-tasks-path")(lm_tasks_path_command)
app.command("report")(report_command)
app.command("pack")(pack_command)
app.command("models")(models_command)
app.command("mechanisms")(mechanisms_command)
app.command("fading")(fading_command)


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
TRAINS = ("train", "league", "paper")
STORES = (*PROBES, "run", "train", "league", "reach")  # commands that keep what they did before it
# commands that several processes share; any other is the first one's alone
SHARED = (*PROBES, "run", "train", "lm-eval", "reach")


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
    occupy()
    # a stream that was closed before we came, 2>&-, is None
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a label must not lose a run
    try:
        with printable_streams():
            code = run(given)
            try:
                sys.stdout.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                # what is still in its buffer could not be written, and would be tried again at the end
                code = failed(f"output: {error.strerror or error}; what was stored is kept")
                nowhere(inner(sys.stdout))
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
            refuse_bytes(given)
            refuse_nowhere()
            first = launched().is_first
            with stoppable(), nullcontext() if first else silent():
                if not first and command not in SHARED:
                    return 0
                code = app(spelled(given, command), prog_name="ssmax-eval", standalone_mode=False, obj=messages)
        except Said:
            return 2
        except Lost as error:
            return failed(str(error))
        except BrokenPipeError:
            raise
        except BaseException as error:
            from .disk import is_full

            if (code := interruption_in(error)) is not None:
                pass
            elif not isinstance(error, Exception):  # sys.exit, and what nobody is to catch
                if command == "lm-eval":  # its own, of options that are wrong
                    raise
                return failed(f"code that was run ended the process ({error!r}); what was stored is kept")
            elif isinstance(error, UserError):
                return failed(str(error))
            elif any(map(is_out_of_memory, origins(error))):
                return failed(
                    f"memory: it does not suffice ({first_line(error)}); {less_memory(command)}; what was stored is kept"
                )
            elif isinstance(error, OSError):  # no space, no permission, a name too long: the user's to mend
                return failed(f"{error.filename or 'output'}: {error.strerror or error}; what was stored is kept")
            elif is_full(error):
                return failed("output: No space left on device; what was stored is kept")
            elif library := failed_import(error):  # an environment variable, another version
                why = (str(error).strip().splitlines() or [type(error).__name__])[0]
                return failed(
                    f"library {library}: it cannot be imported here ({type(error).__name__}: {why}); mend that first"
                )
            elif not hasattr(error, "format_message"):  # ours to mend
                traceback.print_exc()
                return 1
            elif not first:  # which says the same
                return 2
            else:  # click's usage errors (typer brings a click of its own, so not caught by class)
                return failed(usage(error, command))
        if code in (INTERRUPTED, STOPPED) and first:
            how = "; the same command goes on where this one stopped" if command in STORES else ""
            say(f"ssmax-eval: interrupted{how}")
        elif first:
            messages.summarise()
    return code if isinstance(code, int) else 0


def less_memory(command: str) -> str:
    """Return what makes do with less memory."""
    if command in TRAINS:
        return "take fewer tokens (--set tokens_per_step=N) or a smaller model"
    if command in STORES:
        return "take shorter contexts, --dtype bfloat16 or a smaller model"
    return "take less at a time, or a machine with more"


def refuse_nowhere() -> None:
    """Raise UserError in a folder that is gone: paths count from nowhere there, and torch's libraries end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"current folder: {error.strerror or error}; change into one that is there") from None


def refuse_bytes(given: list[str]) -> None:
    """Raise UserError for an argument that is no UTF-8 text: no row or record could hold it, and be read again."""
    for argument in given:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="surrogateescape").decode(errors="replace")
            raise UserError(f"argument {shown!r}: it is not UTF-8 text; rename the file or folder") from None


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


LONGEST_WORD = 300  # characters of a value, a path for example, that an error shows


def failed(message: str) -> int:
    words = [word if len(word) <= LONGEST_WORD else f"{word[:200]}...{word[-60:]}" for word in message.split()]
    say(f"ssmax-eval: error: {' '.join(words)}")
    return 2


for each in app.registered_commands:
    if each.context_settings is not FORWARDED:  # what follows lm-eval is its own
        each.cls = Once
    each.epilog = f"{' and '.join(EVERYWHERE)} go with every command; see ssmax-eval --help."
