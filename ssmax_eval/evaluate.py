"""Load a model, put it in a setting, probe it, store rows: one run for every model, setting and probe."""

import itertools
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .cost import announcer
from .mechanisms.interface import implementations
from .models.load import pick_device
from .models.mechanism_code import is_told, mechanism_source
from .models.subjects import Loaded, RunOptions, Subject, subjects
from .provenance import command, describe_model, environment, peak_memory
from .readers.transformers import TransformersReader
from .results import Run, run_id_of
from .setting import Setting

# of a config: what a forward returns, not what it computes
FORWARD_SWITCHES = {"return_dict": True, "_output_attentions": False, "output_hidden_states": False}
AS_TRAINED = (Setting(),)


class Probe(Protocol):
    """What can be run on a model: a name in the run store, a plan of samples, and a call that yields their rows."""

    @property
    def name(self) -> str: ...
    @property
    def all_rows(self) -> bool: ...
    @property
    def needs(self) -> frozenset[str]: ...
    def plan(self) -> Sequence[Any]: ...
    def has(self, sample: Any, done: Collection[str]) -> bool: ...
    def reads(self, sample: Any) -> list[int]: ...
    def parameters(self) -> dict[str, Any]: ...
    def tokens(self, rows: Sequence[dict[str, Any]]) -> int: ...
    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None: ...
    def __call__(
        self,
        reader: TransformersReader,
        done: Collection[str],
        batch_size: int | None,
        progress: Callable[[int], None],
    ) -> Iterator[list[dict[str, Any]]]: ...


class PlannedRun(NamedTuple):
    """One probe on one model in one setting, and where its rows go."""

    subject: Subject
    probe: Probe
    setting: Setting
    run: Run


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
) -> list[Run]:
    """Run probes on every model in every setting; finished runs are left alone, started ones finished.

    Runs of a model or a mechanism whose code cannot be told (Subject.not_resumable) start over. A model is loaded once, and
    checked for all probes before any runs. Returns the runs, a model's settings in their order, each with every probe. Raises
    UserError.
    """
    options = options or RunOptions()
    plans = planned_runs(probes, models, settings, options)
    announce = announcer(plans, options)
    for each, group in itertools.groupby(plans, key=lambda plan: plan.subject):
        own = list(group)
        fresh = replace(options, fresh=True)
        how = {
            id(plan): options if each.resumable and is_told(plan.setting.attention or each.mechanism) else fresh
            for plan in own
        }
        missing = [plan for plan in own if how[id(plan)].fresh or not plan.run.is_scored]
        if missing:
            model, tokenizer = each.load(options)
            for probe in {id(plan.probe): plan.probe for plan in missing}.values():
                probe.check(model, tokenizer)
            for plan in missing:
                execute(plan, model, tokenizer, how[id(plan)], announce)
    return [plan.run for plan in plans]


def planned_runs(
    probes: Sequence[Probe],
    models: str | Sequence[Any] | dict[str, Any] | Loaded,
    settings: Sequence[Setting] = AS_TRAINED,
    options: RunOptions | None = None,
) -> list[PlannedRun]:
    """Return the runs that run_probes would give, in its order, nothing loaded or written. Raises UserError."""
    options = options or RunOptions()
    pick_device(options.device)
    return [
        PlannedRun(each, probe, setting, open_run(each, probe, setting, options))
        for each in subjects(models)
        for setting in dict.fromkeys(as_it_is(each, setting) for setting in settings)
        for probe in probes
    ]


def as_it_is(each: Subject, setting: Setting) -> Setting:
    """Return a setting without a swap that changes nothing: softmax swapped into a softmax model is that model."""
    asked = setting.attention
    swaps_nothing = asked is not None and str(asked) == each.native_attention == "softmax"
    return replace(setting, attention=None) if swaps_nothing else setting


def open_run(each: Subject, probe: Probe, setting: Setting, options: RunOptions) -> Run:
    """Return the run whose id is the hash of all that decides its rows; device and batch size are not among that."""
    dtype = each.source.dtype(options.dtype) if each.source else str(each.loaded and each.loaded[0].dtype)
    asked = setting.attention
    key = {
        "probe": probe.name,
        "parameters": probe.parameters(),
        "model": each.label,
        "fingerprint": each.fingerprint,
        "dtype": dtype.removeprefix("torch."),
        "attention": None if asked is None else str(asked),
        "attention_source": mechanism_source(asked or each.mechanism),
        **setting.position.key(),
    }
    return Run(options.output_path / probe.name / run_id_of(key))


def execute(
    plan: PlannedRun,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: RunOptions,
    announce: Callable[[Subject, PreTrainedModel], None],
) -> None:
    """Probe one model in one setting, appending rows and writing run.json at the end."""
    started = time.perf_counter()
    each, probe, setting, run = plan
    samples = probe.plan()
    described = describe_model(each, model, tokenizer, options.dtype)
    longest = max(sample.context_length for sample in samples)
    reader = TransformersReader(model, tokenizer)
    with ExitStack() as stack:
        stack.enter_context(inference(model))
        effective = stack.enter_context(setting(model, longest or None))
        probe.check(model, tokenizer)
        proof = reader.prove(longest, probe.needs, effective.has_mechanism)
        effective = effective.that_ran(proof.get("called"))
        writer = stack.enter_context(run.writer(options.fresh))
        earlier = run.rows()
        done = {row["sample"] for row in earlier if row["error"] is None}
        announce(each, model)
        total = sum(sample.context_length for sample in samples)
        position = str(setting.position) if setting.position.changes else ""
        title = " ".join(filter(None, [each.label, effective.attached.attention, position]))
        bar = stack.enter_context(
            tqdm(total=total, desc=title, unit="tok", unit_scale=True, disable=None, file=sys.stderr)
        )
        common = {
            "model": each.label,
            "fingerprint": each.fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
            **effective.columns(),
        }
        for rows in probe(reader, done, options.batch_size, bar.update):
            writer.append({**common, **row} for row in rows)
        rows = run.rows()
        record = {
            "probe": probe.name,
            "parameters": probe.parameters(),
            "model": described,
            **effective.record(model),
            "reader": reader.describe(),
            "preflight": proof,
            "environment": environment(model),
            "command": command(),
            "seconds": round(time.perf_counter() - started, 2),
            "rows": len(rows),
            "rows_from_earlier_processes": len(done),
            "failed": sum(row["error"] is not None for row in rows),
            "tokens": probe.tokens(rows),
            "peak_memory_bytes": peak_memory(model),
        }
        run.finish(record)


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Run a block without dropout, and with forwards that return what they return by default; all comes back afterwards."""
    training = {name: module.training for name, module in model.named_modules()}
    configs = {id(each): each for each, _ in implementations(model)}.values()
    switches = [
        (config, name, vars(config)[name], usual)
        for config in configs
        for name, usual in FORWARD_SWITCHES.items()
        if name in vars(config)
    ]
    try:
        model.eval()
        for config, name, _, usual in switches:
            setattr(config, name, usual)
        yield
    finally:
        for name, module in model.named_modules():
            module.training = training.get(name, False)
        for config, name, given, _ in switches:
            setattr(config, name, given)
