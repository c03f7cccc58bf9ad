"""The commands: lm-eval's own, with our tasks and model type in it, and where the tasks are."""

import re
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..printable import plain_streams
from ..quiet import quiet_libraries
from .options import IMPORTS, import_files

FORWARDED = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


def lm_tasks_path_command() -> None:
    """Print the folder of our lm-eval tasks, for lm-eval's --include_path."""
    from ..harness import tasks_path

    print(tasks_path())


def lm_eval_command(
    imports: IMPORTS = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[LM-EVAL ARGUMENT]...", help="All that lm-eval takes.")
    ] = None,
) -> None:
    """lm-eval's own command line, with our tasks and `--model ssmax-eval` in it; --import comes first."""
    quiet_libraries()
    import_files(imports)
    try:
        import lm_eval.tasks
        from lm_eval._cli import HarnessCLI
        from lm_eval.utils import setup_logging
    except ModuleNotFoundError as error:
        raise UserError(f"lm-eval: {error.name} is not installed; run: pip install 'ssmax-eval[lm-eval]'") from error
    register()
    lm_eval.tasks.TaskManager = with_our_tasks(lm_eval.tasks.TaskManager)
    sys.argv = ["lm-eval", *(arguments or ["--help"])]
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(added())
    command_line = HarnessCLI()
    try:
        with plain_streams():  # from here on it is lm-eval that prints
            setup_logging()
            command_line.execute(command_line.parse_args())
    except UserError:
        raise
    except Exception as error:
        if is_ours(error):
            raise
        # how lm-eval, and what it calls, say what its user got wrong
        raise UserError(f"lm-eval: {error.args[0] if error.args else error or type(error).__name__}") from error


def is_ours(error: BaseException) -> bool:
    """Tell whether code of this package raised an error; its command line calls all the rest."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    told = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return str(told).partition(".")[0] == __name__.partition(".")[0]


def added() -> str:
    """Say what the command adds to lm-eval's own, whose help follows."""
    from ..harness import tasks_path
    from ..harness.documents import SETTINGS

    tasks = []
    for file in sorted(tasks_path().glob("*.yaml")):
        named = re.findall(r"^(?:task|group): (ssmax_\w+)", file.read_text(), re.M)
        tasks += named[:1]
    return f"""usage: ssmax-eval lm-eval [--import FILE.py]... [LM-EVAL ARGUMENT]...

lm-eval's own command line, and besides:
  --import FILE.py         comes first: run a Python file that registers mechanisms or positions of yours; repeatable
  --model ssmax-eval       a transformers model in any setting; --model_args pretrained=REF and, as `ssmax-eval needle` takes
                           them, attention, rope_theta, rope_theta_factor, rope_scaling, position, dtype
  --tasks NAME,...         {indented(tasks)}
  --metadata '{{...}}'       settings of these tasks, for example '{{"context_lengths": [512, 4096], "trials": 10}}':
                           {indented([*SETTINGS, "tokenizer"])}

What follows is lm-eval's.
"""


def indented(names: list[str]) -> str:
    """Write names in lines of the help's right column."""
    column = 27 * " "
    return textwrap.fill(", ".join(names), 118, initial_indent=column, subsequent_indent=column).strip()


def register() -> None:
    """Make model type `ssmax-eval` known to lm-eval; its next release does that itself, by our entry point."""
    import lm_eval.models  # noqa: F401  (its own types first)
    from lm_eval.api.registry import model_registry

    if "ssmax-eval" not in model_registry:
        model_registry.register("ssmax-eval", target="ssmax_eval.harness.model:SSMaxLM")


def with_our_tasks(manager: type) -> type:
    """Return lm-eval's task manager, looking for tasks in our folder too, whatever --include_path says."""
    from ..harness import tasks_path
    from ..models.sources import on_disk

    class WithOurTasks(manager):
        def __init__(
            self, verbosity: Any = None, include_path: Any = None, include_defaults: bool = True, metadata: Any = None
        ):
            given = [include_path] if isinstance(include_path, str) else list(include_path or [])
            others = [path for path in given if Path(path).resolve() != tasks_path()]
            metadata = dict(metadata or {})
            with suppress(UserError):  # what is no model is said where it is loaded
                source = on_disk(str(metadata.get("pretrained")))
                if source and not source.is_gguf:  # lm-eval's tasks that make their own data know no bundled names
                    metadata = {"tokenizer": str(source.path)} | metadata
            super().__init__(verbosity, [*others, tasks_path()], include_defaults, metadata)

    return WithOurTasks
