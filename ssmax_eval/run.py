"""Load models, put them in settings, probe them, store rows: one run for every model, setting and probe."""

import itertools
import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from .cost import Forecast
from .environment import command, environment, peak_memory
from .errors import UserError
from .launch import launched
from .models.mechanism_code import is_told
from .models.subjects import Loaded, RunOptions
from .plans import AS_TRAINED, PlannedRun, kinds_of, planned_runs
from .probes.kind import Probe
from .processes import Alone, together
from .provenance import describe_model
from .readers.inference import inference, unswitched
from .readers.opening import open_reader
from .readers.reader import Reader
from .setting import Setting
from .store import Run


def run_probe(
    probe: Probe,
    models: str | Sequence[Any] | dict[str, Any] | Loaded,
    settings: Sequence[Setting] = AS_TRAINED,
    options: RunOptions | None = None,
) -> list[Run]:
    """Run one probe; as run_probes."""
    return run_probes([probe], models, settings, options)


def run_probes(
    probes: Sequence[Probe],
    models: str | Sequence[Any] | dict[str, Any] | Loaded,
    settings: Sequence[Setting] = AS_TRAINED,
    options: RunOptions | None = None,
    readers: dict[str, Reader] | None = None,
) -> list[Run]:
    """Run probes on every model in every setting; finished runs are left alone, started ones finished.

    Runs of a model or a mechanism whose code cannot be told (Subject.not_resumable) start over. A model is loaded once, and
    checked for all probes before any runs. The processes of one launch share the batches. readers: of models that are loaded
    already, by fingerprint; those that are loaded here are put there. Returns the runs, a model's settings in their order, each
    with every probe. Raises UserError.
    """
    options = options or RunOptions()
    if options.device_map is None:
        options = replace(options, device=launched().device(options.device))
    with together(options.output_path) as processes:
        plans = planned_runs(probes, models, settings, options)
        if processes.same(ids := [plan.run.run_id for plan in plans]) != ids:
            raise UserError("processes: they are not asked the same; give all the same arguments, models and texts")
        anew = {
            id(plan) for plan in plans if not (plan.subject.resumable and is_told(kinds_of(plan.subject, plan.setting)))
        }
        forecast = Forecast(plans, options, processes, anew)
        for each, group in itertools.groupby(plans, key=lambda plan: plan.subject):
            own = list(group)
            fresh = replace(options, fresh=True)
            how = [fresh if id(plan) in anew else options for plan in own]
            left = [
                i for i, plan in enumerate(own) if how[i].fresh or not plan.run.is_scored(plan.probe.rows_planned())
            ]
            if missing := processes.same(left):
                reader = readers.get(each.fingerprint) if readers is not None else None
                reader = reader or open_reader(each, options)
                if readers is not None:
                    readers[each.fingerprint] = reader
                with nullcontext() if reader.model is None else inference(reader.model):
                    for probe in {id(own[i].probe): own[i].probe for i in missing}.values():
                        probe.check(reader.model, reader.tokenizer)
                if reader.model is not None and processes.is_first:
                    advise([own[i].probe for i in missing], each.label, reader.tokenizer)
                for i in missing:
                    execute(own[i], reader, how[i], forecast, processes)
    return [plan.run for plan in plans]


def execute(plan: PlannedRun, reader: Reader, options: RunOptions, forecast: Forecast, processes: Alone) -> None:
    """Probe one model in one setting, appending rows; the first process writes run.json when all are done."""
    started = time.perf_counter()
    each, probe, setting, run = plan
    model, tokenizer = reader.model, reader.tokenizer
    described = describe_model(each, model, tokenizer, options.dtype)
    longest = max(options.reaches, *(sample.context_length for sample in probe.plan()))
    with ExitStack() as stack:
        if model is not None:
            stack.enter_context(inference(model))
        effective = stack.enter_context(setting(model, longest or None))
        if model is not None:
            stack.enter_context(unswitched(model))
        probe.check(model, tokenizer)
        needs = probe.needs | (probe.wants & reader.gives)
        proof = reader.prove(longest, needs, effective.has_mechanism)
        effective = effective.that_ran(proof.get("called"))
        common = {
            "model": each.label,
            "fingerprint": each.fingerprint,
            "dtype": described["dtype"],
            **effective.columns(),
        }
        with processes.first_ahead():
            writer = stack.enter_context(run.writer(options.fresh, processes.process))
            stored = run.rows()
            run.refuse_others(stored, common | {"seed": probe.parameters().get("seed")})
            done = {row["sample"] for row in stored if row["error"] is None}
        see = stack.enter_context(forecast(plan, model, done))
        for rows in probe(reader, done, options.batch_size, processes.claims()):
            writer.append({**common, **row} for row in rows)
            see(rows)
        writer.close()
        processes.meet()
        if not processes.is_first:
            return
        rows = writer.gather(probe.rows_planned())
        if len(done) < len(rows) and (note := probe.note(rows)):  # said when they were read
            logging.getLogger(__name__).warning("ssmax-eval: note: %s", note)
        record = {
            "probe": probe.name,
            "parameters": probe.parameters(),
            **probe.told(tokenizer),
            "model": described,
            **effective.record(model),
            "reader": reader.describe(),
            "preflight": {key: None if value == math.inf else value for key, value in proof.items()},  # JSON has none
            "environment": environment(model),
            "command": command(),
            "seconds": round(time.perf_counter() - started, 2),
            **({"study": options.study} if options.study else {}),
            **({"processes": processes.count} if processes.count > 1 else {}),
            "rows": len(rows),
            "rows_from_earlier_processes": len(done),
            "failed": sum(row["error"] is not None for row in rows),
            "tokens": probe.tokens(rows),
            "peak_memory_bytes": peak_memory(model),
        }
        run.finish(record)


def advise(probes: Sequence[Probe], label: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say once what a user should know of asking these probes of a model."""
    for advice in dict.fromkeys(filter(None, (probe.advice(tokenizer) for probe in probes))):
        logging.getLogger(__name__).warning("ssmax-eval: note: model %r: %s", label, advice)
