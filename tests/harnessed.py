"""lm-eval for tests: imported once with its imports' warnings left out, and our tasks run on a model object of its own kind."""

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval")
    import lm_eval.evaluator
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from ssmax_eval.harness import tasks_path
    from ssmax_eval.harness.model import SSMaxLM
    from ssmax_eval.harness.requests import prompt_of

__all__ = ["HFLM", "Instance", "SSMaxLM", "TaskManager", "get_model", "prompt_of", "tasks_path"]
LOADED = dict(device="cpu", trust_remote_code=True)


def stock(folder, **options):
    """Return lm-eval's own transformers model type on a checkpoint."""
    return HFLM(pretrained=str(folder) if isinstance(folder, Path) else folder, **{**LOADED, **options})


def ours(reference, **options):
    return SSMaxLM(str(reference), **{**LOADED, **options})


def tasks(name, **metadata):
    """Return the tasks of a name as lm-eval loads them."""
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=metadata)
    return manager.load([name])


def evaluate(lm, name, limit=None, **metadata):
    """Run a task of ours and return lm-eval's results, samples with them."""
    return lm_eval.evaluator.evaluate(lm, tasks(name, **metadata), limit=limit)


def metrics(results, task):
    return {key.removesuffix(",none"): value for key, value in results["results"][task].items() if "," in key}
