"""A command's plan and its cost, with no weights loaded and nothing written."""

import itertools
from collections.abc import Sequence
from typing import Any

from .cost import by_length, cuts, in_words, price, total
from .models.load import check_config, load_tokenizer
from .models.shape import blank
from .models.subjects import RunOptions
from .plans import PlannedRun
from .probes.by_model import training_length


def dry_run(plans: Sequence[PlannedRun], options: RunOptions) -> dict[str, Any]:
    """Return what planned runs would do: models, cost by context length and in all, the runs' folders, and all of it in words.

    Raises UserError for what config and tokenizer already refuse; what only weights can tell is left to the run.
    """
    check_without_weights(plans, options)
    lines = price(plans, options)
    left = {id(plan): sum(line.prompts for line in lines if line.plan is plan) for plan in plans}
    subjects = {plan.subject.label: plan.subject for plan in plans}.values()
    return {
        "models": [
            {"model": each.label, "train_length": training_length(each.loaded or each.reference)} for each in subjects
        ],
        "lengths": by_length(lines),
        "prompts": sum(line.prompts for line in lines),
        "tokens": sum(line.tokens for line in lines),
        "longest": max((line.context_length for line in lines), default=0),
        "operations": total(lines),
        "cut": cuts(lines),
        "runs": [
            {
                "run": str(plan.run.folder),
                "probe": plan.probe.name,
                "model": plan.subject.label,
                "attention": str(plan.setting.attention or plan.subject.native_attention),
                "rope": str(plan.setting.position),
                "prompts_left": left[id(plan)],
            }
            for plan in plans
        ],
        "in_words": in_words(lines),
    }


def check_without_weights(plans: Sequence[PlannedRun], options: RunOptions) -> None:
    """Raise UserError for what the plans ask of a model that its config, or its tokenizer, already refuses."""
    for each, group in itertools.groupby(plans, key=lambda plan: plan.subject):
        model, tokenizer = each.loaded or (None, None)
        if each.source is not None:
            if not each.source.is_gguf:
                check_config(each.source, options.trust_remote_code)
            tokenizer = load_tokenizer(each.source, options.trust_remote_code)
            model = blank(each.source, options.trust_remote_code)
        if model is not None and tokenizer is not None:
            for probe in {id(plan.probe): plan.probe for plan in group}.values():
                probe.check(model, tokenizer)
