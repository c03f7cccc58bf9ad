"""The command `run` with a sweep's file."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..launch import launched
from ..processes import together
from .options import import_files

# what is given beside a sweep's file; all else is said in it
BESIDE = ("dry_run", "fresh", "output_path", "report", "tables", "json", "attended", "blow_up")


def show_sweep(file: Path, imports: Sequence[Path] | None, beside: Mapping[str, Any]) -> None:
    """Read a sweep, check all of it, run it, and print and report what it found; or only its plan.

    beside: the options that were given with it on the command line. Raises UserError.
    """
    from ..dry_run import check_without_weights, dry_run_of_all
    from ..run import run_probes
    from ..statistics import Thresholds
    from ..sweep import planned, read_sweep, where
    from ..terminal import print_plan, print_runs

    for name in beside:
        if name not in BESIDE:
            allowed = ", ".join(f"--{each.replace('_', '-')}" for each in BESIDE)
            raise UserError(
                f"--{name.replace('_', '-')}: beside a sweep's file it is said in the file; allowed are {allowed}"
            )
    sweep = read_sweep(file)
    whole = {**sweep.whole, **beside}
    import_files([*sweep.imports, *(imports or [])])
    thresholds = Thresholds(**{each.name: whole[each.name] for each in fields(Thresholds) if each.name in whole})
    output_path = Path(whole.get("output_path", "results"))
    fresh = beside.get("fresh", False)
    if beside.get("dry_run"):
        if launched().is_first:
            groups = planned(sweep, output_path, fresh)
            plan = dry_run_of_all([(each.plans, each.how) for each in groups], partial(where, sweep, groups))
            print_plan(plan, beside.get("json", False))
        return
    runs = []
    with together(output_path):  # from here on, so that what is wrong for all is said by one
        groups = planned(sweep, output_path, fresh)
        for each in groups:
            check_without_weights(each.plans, each.how, partial(where, sweep, groups))  # of all before any runs
        for each in groups:
            runs += run_probes(each.probes, [*each.models], each.settings, each.how)
    if launched().is_first:
        tables = Path(whole["tables"]) if whole.get("tables") else None
        unique = {run.folder: run for run in runs}.values()
        print_runs([*unique], output_path, whole.get("report", True), beside.get("json", False), thresholds, tables)
