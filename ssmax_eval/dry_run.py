"""A command's plan and its cost, with no weights loaded and nothing written."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch

from .cost import Line, by_length, cuts, in_words, price, total
from .errors import reading
from .models.load import check_config, load_tokenizer, pick_device
from .models.shape import blank, memory_of
from .models.subjects import RunOptions, Subject
from .plans import PlannedRun
from .probes.by_model import training_length
from .probes.kind import Probe
from .progress import duration
from .training.throughput import matmul_rate

rate = cache(matmul_rate)
Asked = Callable[[Probe], AbstractContextManager[None]]


def dry_run(plans: Sequence[PlannedRun], options: RunOptions) -> dict[str, Any]:
    """Return what planned runs would do (dry_run_of_all). Raises UserError."""
    return dry_run_of_all([(plans, options)])


def dry_run_of_all(
    groups: Sequence[tuple[Sequence[PlannedRun], RunOptions]], asked: Asked = lambda probe: nullcontext()
) -> dict[str, Any]:
    """Return what planned runs would do: models, cost by context length and in all, the runs' folders, and all of it in words.

    groups: runs, and how each group of them is run. asked: says where a probe was asked for, in its errors. Raises UserError for
    what config and tokenizer already refuse; what only weights can tell is left to the run.
    """
    lines: list[Line] = []
    needs: list[Least] = []
    plans: list[PlannedRun] = []
    for own, options in groups:
        check_without_weights(own, options, asked)
        theirs = price(own, options)
        each_model = {plan.subject.label: plan.subject for plan in own}.values()
        needs += [least(each, options, [line for line in theirs if line.plan.subject is each]) for each in each_model]
        lines += theirs
        plans += own
    left = {id(plan): sum(line.prompts for line in lines if line.plan is plan) for plan in plans}
    subjects = {plan.subject.label: plan.subject for plan in plans}.values()
    seconds = [each.seconds for each in needs]
    return {
        "models": [{"model": each.label, "train_length": trained_at(each)} for each in subjects],
        "lengths": by_length(lines),
        "prompts": sum(line.prompts for line in lines),
        "tokens": sum(line.tokens for line in lines),
        "longest": max((line.context_length for line in lines), default=0),
        "operations": total(lines),
        "seconds_at_least": None if None in seconds else sum(filter(None, seconds)),
        "memory_bytes_at_least": max((each.weights + each.layer for each in needs), default=0),
        "cut": cuts(lines),
        "runs": [
            {
                "run": str(plan.run.folder),
                "probe": plan.probe.name,
                "model": plan.subject.label,
                "attention": str(plan.setting.attention or plan.subject.native_attention),
                "rope": str(plan.setting.position),
                "apart": what,
                "prompts_left": left[id(plan)],
            }
            for plan, what in zip(plans, apart(plans), strict=True)
        ],
        "in_words": "; ".join([in_words(lines), *in_words_least(needs)]) if lines else in_words(lines),
    }


def apart(plans: Sequence[PlannedRun]) -> list[dict[str, Any]]:
    """Return for each run those of its parameters in which runs of its probe differ, one level into what holds several."""
    flat = []
    for plan in plans:
        own: dict[str, Any] = {}
        for key, value in plan.probe.parameters().items():
            parts = value.items() if isinstance(value, dict) else [(key, value)]
            own |= {f"{key} {name}" if name in own else name: part for name, part in parts}
        flat.append(own)
    out = []
    for plan, own in zip(plans, flat, strict=True):
        others = [theirs for theirs, each in zip(flat, plans, strict=True) if each.probe.name == plan.probe.name]
        out.append({name: own[name] for name in own if any(theirs.get(name) != own[name] for theirs in others)})
    return out


def trained_at(each: Subject) -> int | None:
    return None if each.foreign else training_length(each.loaded or each.reference)


class Least(NamedTuple):
    """What runs of a model need at the least: bytes of its weights, of one layer at the longest prompt, and seconds if known."""

    weights: int
    layer: int
    seconds: float | None


def least(each: Subject, options: RunOptions, lines: Sequence[Line]) -> Least:
    """Return what lines of a model need: as fast as this machine multiplies matrices, and with one layer in memory at a time."""
    model = each.loaded[0] if each.loaded else blank(each.source, options.trust_remote_code) if each.source else None
    if model is None or not lines:
        return Least(0, 0, None if lines else 0.0)
    name = each.source.dtype(options.dtype) if each.source else str(model.dtype).removeprefix("torch.")
    dtype = getattr(torch, name, torch.float32)
    device = torch.device(pick_device(options.device))
    operations = total(lines)
    seconds = None if operations is None else operations / rate(device, dtype)
    return Least(*memory_of(model, max(line.context_length for line in lines), dtype.itemsize), seconds)


def in_words_least(needs: Sequence[Least]) -> list[str]:
    """Say what is needed at the least."""
    largest = max(needs, key=lambda each: each.weights + each.layer)
    if not largest.weights:  # nothing is read in this process
        return []
    told = [
        f"at least {(largest.weights + largest.layer) / 1e9:.2g} GB of memory, {largest.weights / 1e9:.2g} GB of it weights"
    ]
    if None not in [each.seconds for each in needs]:
        spent = sum(each.seconds or 0 for each in needs)
        told.append(f"at least {duration(spent)} here, as fast as this machine multiplies matrices")
    return told


def check_without_weights(
    plans: Sequence[PlannedRun], options: RunOptions, asked: Asked = lambda probe: nullcontext()
) -> None:
    """Raise UserError for what the plans ask of a model that its config, or its tokenizer, already refuses."""
    for each, group in itertools.groupby(plans, key=lambda plan: plan.subject):
        model, tokenizer = each.loaded or (None, None)
        if each.source is not None:
            with reading(f"model {each.source.reference!r}"):
                if not each.source.is_gguf:
                    check_config(each.source, options.trust_remote_code)
                tokenizer = load_tokenizer(each.source, options.trust_remote_code)
            model = blank(each.source, options.trust_remote_code)
        if each.foreign is not None:
            tokenizer = each.foreign.counting.tokenizer
        if tokenizer is not None and (model is not None or each.foreign is not None):
            for probe in {id(plan.probe): plan.probe for plan in group}.values():
                with asked(probe):
                    probe.check(model, tokenizer)
