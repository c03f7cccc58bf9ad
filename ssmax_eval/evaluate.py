"""Load a model, with an attention law, set its RoPE, probe it, store rows: one run for every model, law and RoPE setting."""

import itertools
import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .attention.interface import Attached, attention_law, implementations, law_state, native_law, native_mechanism
from .attention.laws import format_law, parse_law
from .cost import announcer
from .errors import UserError
from .models.identity import Identity, identify, identify_source, mechanism_asked
from .models.law_code import told_law, user_law_source
from .models.load import load_model, pick_device
from .models.preflight import preflight
from .models.rope import RopeSetting, rope_scaled
from .models.sources import ModelSource, resolve
from .provenance import command, describe_model, describe_rope, environment, peak_memory
from .results import Run, run_id_of

# of a config: what a forward returns, not what it computes
FORWARD_SWITCHES = {"return_dict": True, "_output_attentions": False, "output_hidden_states": False}
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class Probe(Protocol):
    """What can be run on a model: a name in the run store, a plan of samples, and a call that yields their rows."""

    @property
    def name(self) -> str: ...
    @property
    def all_rows(self) -> bool: ...
    def plan(self) -> Sequence[Any]: ...
    def has(self, sample: Any, done: Collection[str]) -> bool: ...
    def reads(self, sample: Any) -> list[int]: ...
    def parameters(self) -> dict[str, Any]: ...
    def tokens(self, rows: Sequence[dict[str, Any]]) -> int: ...
    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None: ...
    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        done: Collection[str],
        batch_size: int | None,
        progress: Callable[[int], None],
    ) -> Iterator[list[dict[str, Any]]]: ...


@dataclass(frozen=True)
class Settings:
    """How to run: dtype and device as load_model takes them; batch_size None chooses; fresh starts every run over."""

    dtype: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    output_path: Path = Path("results")
    fresh: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size}: allowed are auto and whole numbers from 1")


@dataclass(frozen=True)
class Subject:
    """A model to probe: where it comes from (or the loaded pair itself), and what identifies its weights.

    not_resumable: why its runs start over each time and are never served from stored rows; None if they may be.
    """

    label: str
    reference: str
    fingerprint: str
    native_attention: str
    source: ModelSource | None = None
    loaded: Loaded | None = None
    not_resumable: str | None = None

    @property
    def resumable(self) -> bool:
        return self.not_resumable is None

    def load(self, settings: Settings) -> Loaded:
        if self.loaded is not None:
            return self.loaded
        assert self.source is not None
        return load_model(
            self.source,
            dtype=settings.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
        )


def subjects(models: str | Sequence[Any] | dict[str, Any] | Loaded) -> list[Subject]:
    """Return the subjects of references (`[LABEL=]REF`), of {label: reference or (model, tokenizer)}, or of one loaded pair."""
    if isinstance(models, str) or (isinstance(models, tuple) and models and hasattr(models[0], "config")):
        models = [models]
    items: list[tuple[str, Any]] = list(models.items()) if isinstance(models, dict) else [("", each) for each in models]
    found = [subject(label, reference) for label, reference in items]
    labels = [each.label for each in found]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"model {label!r}: two models have this name; tell them apart: --model LABEL=REF")
    return found


def subject(label: str, reference: Any) -> Subject:
    if isinstance(reference, str):
        source = resolve(f"{label}={reference}" if label else reference)
        entry = source.config().get("ssmax")
        native = entry.get("attention", "softmax") if isinstance(entry, dict) else mechanism_asked(source.config())
        identity = identify_source(source)
        reason = told(source.label, identity)
        return Subject(
            source.label, source.reference, identity.fingerprint, native, source=source, not_resumable=reason
        )
    model, tokenizer = reference
    name = type(model).__name__
    native = native_mechanism(model)
    if hasattr(model.config, "ssmax") and native != "softmax" and not law_state(model):
        raise UserError(
            f"model {label or name!r}: its config names attention law {native}, but its layers carry none; "
            "load it with ssmax_eval.load_model"
        )
    identity = identify(model, tokenizer)
    reason = told(label or name, identity)
    return Subject(label or name, name, identity.fingerprint, native, loaded=reference, not_resumable=reason)


def told(label: str, identity: Identity) -> str | None:
    """Say why a model's runs are not resumed, and return the reason; None if they are."""
    if identity.unknown_code is None:
        return None
    reason = f"code that is not transformers' decides its numbers: {identity.unknown_code}"
    logging.getLogger(__name__).warning(
        "ssmax-eval: note: model %r: its runs start over, stored rows are not used: %s", label, reason
    )
    return reason


class PlannedRun(NamedTuple):
    """One probe on one model under one law (None: its own) and one RoPE setting, and where its rows go."""

    subject: Subject
    probe: Probe
    swap: str | None
    rope: RopeSetting
    run: Run


def run_probe(
    probe: Probe,
    models: str | Sequence[Any] | dict[str, Any] | Loaded,
    attentions: Sequence[str | None] = (None,),
    ropes: Sequence[RopeSetting] = (RopeSetting(),),
    settings: Settings | None = None,
) -> list[Run]:
    """Run one probe; as run_probes."""
    return run_probes([probe], models, attentions, ropes, settings)


def run_probes(
    probes: Sequence[Probe],
    models: str | Sequence[Any] | dict[str, Any] | Loaded,
    attentions: Sequence[str | None] = (None,),
    ropes: Sequence[RopeSetting] = (RopeSetting(),),
    settings: Settings | None = None,
) -> list[Run]:
    """Run probes on every model under every law and RoPE setting; finished runs are left alone, started ones finished.

    Runs of a model whose code cannot be told (Subject.not_resumable) start over. Attention None is the model's own law with its
    learned values, a name swaps a fresh law in. A model is loaded once, and checked for all probes before any runs. Returns the
    runs, a model's laws and settings in that order, each with every probe. Raises UserError.
    """
    settings = settings or Settings()
    plans = planned_runs(probes, models, attentions, ropes, settings)
    announce = announcer(plans, settings)
    for each, group in itertools.groupby(plans, key=lambda plan: plan.subject):
        own = list(group)
        fresh = replace(settings, fresh=True)
        how = {id(plan): settings if each.resumable and told_law(plan.swap) else fresh for plan in own}
        missing = [plan for plan in own if how[id(plan)].fresh or not plan.run.is_scored]
        if missing:
            model, tokenizer = each.load(settings)
            for probe in {id(plan.probe): plan.probe for plan in missing}.values():
                probe.check(model, tokenizer)
            for plan in missing:
                execute(each, model, tokenizer, plan.probe, plan.swap, plan.rope, plan.run, how[id(plan)], announce)
    return [plan.run for plan in plans]


def planned_runs(
    probes: Sequence[Probe],
    models: str | Sequence[Any] | dict[str, Any] | Loaded,
    attentions: Sequence[str | None] = (None,),
    ropes: Sequence[RopeSetting] = (RopeSetting(),),
    settings: Settings | None = None,
) -> list[PlannedRun]:
    """Return the runs that run_probes would give, in its order, nothing loaded or written. Raises UserError."""
    settings = settings or Settings()
    pick_device(settings.device)
    swaps = list(dict.fromkeys(None if law is None else format_law(*parse_law(law)) for law in attentions))
    return [
        PlannedRun(each, probe, law, rope, open_run(each, probe, law, rope, settings))
        for each in subjects(models)
        # softmax swapped into a softmax model is that model
        for law in dict.fromkeys(None if law == each.native_attention == "softmax" else law for law in swaps)
        for rope in ropes
        for probe in probes
    ]


def open_run(each: Subject, probe: Probe, swap: str | None, rope: RopeSetting, settings: Settings) -> Run:
    """Return the run whose id is the hash of all that decides its rows; device and batch size are not among that."""
    dtype = each.source.dtype(settings.dtype) if each.source else str(each.loaded and each.loaded[0].dtype)
    key = {
        "probe": probe.name,
        "parameters": probe.parameters(),
        "model": each.label,
        "fingerprint": each.fingerprint,
        "dtype": dtype.removeprefix("torch."),
        "attention": swap,
        "attention_source": None if swap is None else user_law_source(swap),
        "rope": asdict(rope),
    }
    return Run(settings.output_path / probe.name / run_id_of(key))


def execute(
    each: Subject,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probe: Probe,
    swap: str | None,
    rope: RopeSetting,
    run: Run,
    settings: Settings,
    announce: Callable[[Subject, PreTrainedModel], None],
) -> None:
    """Probe one model under one law and one RoPE setting, appending rows and writing run.json at the end."""
    started = time.perf_counter()
    plan = probe.plan()
    described = describe_model(each, model, tokenizer, settings.dtype)
    longest = max(sample.context_length for sample in plan)
    with ExitStack() as stack:
        stack.enter_context(inference(model))
        attached = stack.enter_context(attention_law(model, swap, longest or None) if swap else native_law(model))
        effective = stack.enter_context(
            rope_scaled(model, rope.theta_factor, rope.theta, rope.scaling, longest=longest or None)
        )
        probe.check(model, tokenizer)
        laws = bool(attached.scaled_layers)
        proof = preflight(model, tokenizer, longest, laws=laws, masses=probe.name == "attention")
        attached = that_ran(attached, proof)
        writer = stack.enter_context(run.writer(settings.fresh))
        earlier = run.rows()
        done = {row["sample"] for row in earlier if row["error"] is None}
        announce(each, model)
        total = sum(sample.context_length for sample in plan)
        title = " ".join(filter(None, [each.label, attached.attention, str(rope) if rope.changes else ""]))
        bar = stack.enter_context(
            tqdm(total=total, desc=title, unit="tok", unit_scale=True, disable=None, file=sys.stderr)
        )
        common = {
            "model": each.label,
            "fingerprint": each.fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": attached.attention,
            "attention_swapped": swap is not None,
            "rope": str(rope),
            "rope_theta": effective.rope_theta if effective else None,
            "rope_theta_factor": rope.theta_factor,
            "rope_scaling": rope.scaling,
        }
        for rows in probe(model, tokenizer, done, settings.batch_size, bar.update):
            writer.append({**common, **row} for row in rows)
        rows = run.rows()
        record = {
            "probe": probe.name,
            "parameters": probe.parameters(),
            "model": described,
            "attention": {**asdict(attached), "swapped": swap is not None, "learned": law_state(model)},
            "rope": describe_rope(rope, effective),
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


def that_ran(attached: Attached, proof: dict[str, Any]) -> Attached:
    """Leave out of what was attached the layers that never ran, as cross-attention does when there is only text."""
    called = proof.get("called")
    if called is None:
        return attached
    scaled, unscaled = (
        [name for name in names if name in called] for names in (attached.scaled_layers, attached.unscaled_layers)
    )
    if attached.scaled_layers and not scaled:
        raise UserError(
            f"attention law {attached.attention}: none of the layers that it is on runs in a forward of text; use softmax"
        )
    return replace(attached, scaled_layers=scaled, unscaled_layers=unscaled)


def rope_settings(
    theta: float | None = None, theta_factors: Sequence[float] = (1.0,), scaling: str | None = None
) -> list[RopeSetting]:
    """Return one setting for each theta factor, the other requests the same in all."""
    return [RopeSetting(theta_factor=factor, theta=theta, scaling=scaling) for factor in dict.fromkeys(theta_factors)]
