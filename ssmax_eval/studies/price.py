"""What a mechanism costs beside softmax: seconds of a training step and of reading a prompt, measured in turns on this machine."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..disk import json_in, whole
from ..environment import environment
from ..models.load import load_model
from ..models.sources import resolve

PACKAGE = Path(__file__).parents[1]
TURNS = 5
STEP_SEQUENCES, READ_TIMES = 16, 16  # of the training length


def prices(models: Mapping[str, Path], baseline: str, train_length: int, file: Path) -> dict[str, dict[str, float]]:
    """Return how many times softmax's seconds each model takes: {label: {"step": ..., "token": ...}}.

    models: folders by label, baseline among them. step: forward and backward of 16 sequences of train_length. token: reading one
    prompt of 16 times that. Each is the median over turns of the ratio, the two models in turns, so that what else the machine
    does falls on both. Seconds are the process's own, of all its threads; a step has no optimizer, which costs all alike. file:
    keeps what was measured; a model that is in it is not measured again, unless weights, code, libraries or machine are others.
    """
    known: dict[str, dict[str, float | str]] = {}
    with suppress(OSError, ValueError, TypeError):
        known = {label: dict(each) for label, each in dict(json_in(file)).items()}
    weights = {label: resolve(str(folder)).fingerprint for label, folder in models.items()}
    where = {name: value for name, value in environment(None).items() if name not in ("device", "git_revision")}
    told = json.dumps([where, platform.processor(), code(), weights[baseline]], sort_keys=True)
    prints = {label: sha256(f"{each} {told}".encode()).hexdigest()[:16] for label, each in weights.items()}
    base: PreTrainedModel | None = None
    for label, folder in models.items():
        if label == baseline or known.get(label, {}).get("measured") == prints[label]:
            continue
        base = base or load_model(str(models[baseline]), dtype="float32", device="cpu")[0]
        own = load_model(str(folder), dtype="float32", device="cpu")[0]
        known[label] = {"measured": prints[label], **beside(own, base, train_length)}
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as half:
            half.write_text(json.dumps(known, indent=1))
    found = {label: known[label] for label in models if label != baseline}
    measured = {label: {name: float(each[name]) for name in ("step", "token")} for label, each in found.items()}
    return measured | {baseline: {"step": 1.0, "token": 1.0}}


def code() -> str:
    """Return a hash of what computes: the files of mechanisms and positions."""
    files = sorted(file for room in ("mechanisms", "position") for file in (PACKAGE / room).glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def beside(own: PreTrainedModel, base: PreTrainedModel, train_length: int) -> dict[str, float]:
    """Return the ratios of one model's seconds to another's, of a training step and of reading a prompt."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(base.config.vocab_size)
    batch = torch.randint(vocabulary, (STEP_SEQUENCES, train_length), generator=generator)
    prompt = torch.randint(vocabulary, (1, READ_TIMES * train_length), generator=generator)

    def step(model: PreTrainedModel) -> None:
        model.train()
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    def read(model: PreTrainedModel) -> None:
        model.eval()
        with torch.inference_mode():
            model(input_ids=prompt, use_cache=False, logits_to_keep=1)

    return {name: round(ratio(run, own, base), 3) for name, run in (("step", step), ("token", read))}


def ratio(run: Callable[[PreTrainedModel], None], own: PreTrainedModel, base: PreTrainedModel) -> float:
    for model in (base, own):
        run(model)  # the first time is slower
    return statistics.median(seconds(run, own) / seconds(run, base) for _ in range(TURNS))


def seconds(run: Callable[[PreTrainedModel], None], model: PreTrainedModel) -> float:
    start = time.process_time()  # of this process alone: what else the machine does counts less
    run(model)
    return time.process_time() - start
