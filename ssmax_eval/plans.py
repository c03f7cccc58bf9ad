"""What is to run: which probes on which models in which settings, and where the rows go; nothing loaded or written."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from .errors import UserError
from .mechanisms.layers import WINDOW_KEYS
from .mechanisms.train_length import text_part
from .models.load import pick_device
from .models.mechanism_code import code_source
from .models.shape import blank
from .models.subjects import Loaded, RunOptions, Subject, subjects
from .position.bias import biases
from .probes.by_model import config_of
from .probes.kind import Probe
from .probes.options import Options, several
from .readers.forked_proof import forking, why_whole
from .readers.opening import gives_of
from .setting import Setting, settings_of
from .store import Run, run_id_of

AS_TRAINED = (Setting(),)


class PlannedRun(NamedTuple):
    """One probe on one model in one setting, and where its rows go."""

    subject: Subject
    probe: Probe
    setting: Setting
    run: Run


def settings_asked(options: Options) -> list[Setting]:
    """Return the settings that options ask for: each mechanism at each RoPE theta. Raises UserError."""
    factors = options.rope_theta_factor
    return settings_of(
        [*several(options.attention)] or [None],
        options.rope_theta,
        [factors] if isinstance(factors, int | float) else [*factors],
        options.rope_scaling,
        options.position,
    )


def how_asked(options: Options) -> RunOptions:
    """Return how options ask for models to be loaded and run. Raises UserError."""
    return RunOptions(
        dtype=options.dtype,
        device=options.device,
        device_map=options.device_map,
        batch_size=options.batch_size,
        output_path=Path(options.output_path),
        fresh=options.fresh,
        trust_remote_code=options.trust_remote_code,
        tokenizer=options.tokenizer,
    )


def planned_runs(
    probes: Sequence[Probe],
    models: str | Sequence[Any] | dict[str, Any] | Loaded,
    settings: Sequence[Setting] = AS_TRAINED,
    options: RunOptions | None = None,
) -> list[PlannedRun]:
    """Return the runs that run_probes would give, in its order, nothing loaded or written. Raises UserError."""
    options = options or RunOptions()
    pick_device(options.device)
    for probe in probes:
        probe.rows_planned()  # what is wrong with a plan is said before anything is loaded
    return [
        PlannedRun(each, probe, setting, open_run(each, probe, setting, options))
        for each in subjects(models, options.tokenizer)
        for own in [given_by(each, probes)]
        for setting in dict.fromkeys(as_it_is(each, setting) for setting in settings)
        for probe in own
    ]


def given_by(each: Subject, probes: Sequence[Probe]) -> list[Probe]:
    """Return what of the probes a model's reader can give, with a note of what it cannot.

    Raises UserError where that is nothing, or not the one probe that was asked for.
    """
    gives, why = gives_of(each)
    kept = []
    for probe in probes:
        left = probe.given(gives)
        if left is not None and left is not probe:
            instead = "answers are generated" if left.name == probe.name else f"{left.name} in place of {probe.name}"
        else:
            instead = f"no {probe.name}"
        if len(probes) == 1 and (left is None or left.name != probe.name):
            raise UserError(f"{probe.name}: model {each.label!r}: {why}; ask another probe of it")
        if left is not probe:
            note(f"model {each.label!r}: {why}: {instead}")
        if left is not None:
            kept.append(left)
    if not kept:
        raise UserError(f"model {each.label!r}: {why}: it gives nothing that is asked for; take the probe needle")
    return kept


def note(text: str) -> None:
    logging.getLogger(__name__).warning("ssmax-eval: note: %s", text)


def as_it_is(each: Subject, setting: Setting) -> Setting:
    """Return a setting without a swap that changes nothing: a model asked for under its own mechanism, by name, is that model.

    So what it learned stays: `--attention ssmax` reads an SSMax model as trained. With options (`ssmax:s=0.2`) it is a swap.
    Raises UserError for a setting of what no setting reaches.
    """
    if each.foreign is not None and setting != Setting():
        raise UserError(
            f"model {each.label!r}: {setting} cannot be put on a function or a server; leave it out, or the model"
        )
    asked = setting.attention
    own = each.native_attention if each.mechanism is None else each.mechanism.mechanism.name
    swaps_nothing = asked is not None and str(asked) == own and (each.mechanism is not None or asked.is_softmax)
    return replace(setting, attention=None) if swaps_nothing else setting


def kinds_of(each: Subject, setting: Setting) -> tuple[type[Any] | None, type[Any] | None]:
    """Return the mechanism and the bias that a setting puts on a model, or that it carries."""
    asked = setting.attention or each.mechanism
    bias = each.bias if setting.position.instead is None else setting.position.bias
    return None if asked is None else asked.mechanism, biases().get(str(bias))


def is_forked(plan: PlannedRun, model: PreTrainedModel | None, trust_remote_code: bool) -> bool:
    """Tell whether what the prompts of a run share is read once, as far as that is known before it is proved.

    model: the one that is run, None where it is not loaded.
    """
    if not plan.probe.wants or plan.subject.foreign is not None:
        return False
    if model is not None and forking(model, plan.probe.longest(), plan.probe.needs).why is not None:
        return False
    mechanism, _ = kinds_of(plan.subject, plan.setting)
    turns = str(plan.setting.position.rope.scaling or "").startswith(("dynamic", "longrope"))
    whole = turns or getattr(mechanism, "cache", "crop") == "whole"
    built = model or (blank(plan.subject.source, trust_remote_code) if plan.subject.source else None)
    return not whole and (built is None or why_whole(built) is None)


def code_of(each: Subject, setting: Setting) -> dict[str, Any]:
    """Return hashes of the code that decides numbers and is not this package's own; keys of before keep their runs."""
    mechanism, bias = map(code_source, kinds_of(each, setting))
    return {"attention_source": mechanism} | ({} if bias is None else {"position_source": bias})


def beyond_windows(each: Subject, probe: Probe, setting: Setting, options: RunOptions) -> dict[str, Any]:
    """Return a study's longest prompt where that decides rows: a window holds the run's prompts, not those of the whole study."""
    if kinds_of(each, setting)[0] is None or options.reaches <= probe.longest():
        return {}
    config = each.loaded[0].config.to_dict() if each.loaded else config_of(each.source) if each.source else {}
    windows = [value for name in WINDOW_KEYS if isinstance(value := text_part(config).get(name), int)]
    between = any(probe.longest() <= window < options.reaches for window in windows)
    return {"reaches": options.reaches} if between else {}


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
        **code_of(each, setting),
        **setting.position.key(),
        **beyond_windows(each, probe, setting, options),
    }
    return Run(options.output_path / probe.name / run_id_of(key), probe.schema)
