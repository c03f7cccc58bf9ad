"""SSMax with an s of its own for each head, fitted without training a weight, and taken where it finds more than the setting advised."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from .. import statistics
from ..data.prompts import Prompt
from ..disk import whole
from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.edit import Edit
from ..mechanisms.interface import edited
from ..mechanisms.layers import heads_by_layer, layer_indices
from ..models.retrofit import retrofit
from ..models.subjects import RunOptions
from ..probes.needle.probe import make
from ..readers.transformers import TransformersReader
from ..results import tables
from ..run import run_probes
from ..setting import Setting
from ..training.signs import of_retrofit
from .advice import options_of
from .advise import AS_TRAINED, CHECKS, NEEDED, SEED, Advice
from .asked import Asked
from .held_out import beyond_words, decisive
from .race import ROUNDS

log = logging.getLogger(__name__)
STEPS, RATE = 30, 0.05  # of Adam, on ln s
RIDGE = 0.05  # nats that a head costs whose s is e times that of all heads


@dataclass(frozen=True)
class PerHead:
    """How SSMax with an s for each head does beside the setting advised, on the held-out prompts of the same task.

    low, high: the 95% interval of the difference, over trials (statistics.compare), where it decides (held_out.gains). beyond:
    the length from which on it does, 0 for all lengths. s: by layer, what each head got.
    """

    accuracy: float
    advised: float
    low: float
    high: float
    beyond: int
    s: Mapping[int, list[float]]

    @property
    def pays(self) -> bool:
        """Tell whether it finds more beyond chance."""
        return self.low > 0

    def __str__(self) -> str:
        return (
            f"With an s of its own for each head it finds {self.accuracy:.2f} {beyond_words(self.beyond)}, "
            f"with the setting advised {self.advised:.2f} (difference "
            f"{self.accuracy - self.advised:+.2f}, 95% interval {self.low:+.2f} to {self.high:+.2f}): {'' if self.pays else 'not '}taken."
        )


def told_of_saving(asked: Asked, advice: Advice, options: RunOptions, folder: Path) -> dict[str, str]:
    """Return what `saved` tells, or why the model cannot be saved: the advice stands all the same."""
    try:
        return saved(asked, advice, options, folder)
    except UserError as error:
        return {"not saved": str(error)}


def saved(asked: Asked, advice: Advice, options: RunOptions, folder: Path) -> dict[str, str]:
    """Save the model in the setting advised, with an s for each head where that pays, and return what is told of it.

    Of several settings it has Advice.setting, as a checkpoint has one.
    """
    told, heads = {"saved": str(folder)}, None
    options = replace(options, reaches=asked.longest)
    try:
        heads = per_head(asked, advice, options, folder)
    except RuntimeError as error:  # out of memory, say: the advice stands all the same
        told["s for each head"] = f"not fitted ({type(error).__name__}: {str(error)[:200]})"
    if heads is not None:
        told["s for each head"] = str(heads)
    if heads is None or not heads.pays:
        if len({*advice.settings.values()}) > 1:
            lengths = [f"{length:,}" for length, each in advice.settings.items() if each == advice.setting]
            told["saved with"] = f"{options_of(advice.setting)}, taken and checked at {', '.join(lengths)} tokens alone"
        attention, rope = advice.setting.attention, advice.setting.position.rope
        retrofit(
            asked.subject.reference,
            str(attention) if attention else None,
            folder,
            options.dtype,
            rope,
            trust_remote_code=options.trust_remote_code,
            tried=asked.longest,
        )
    return told | {"signs": " ".join(of_retrofit(asked.subject.reference, folder))}


def per_head(asked: Asked, advice: Advice, options: RunOptions, folder: Path) -> PerHead | None:
    """Fit an s for each head, save the model with it at `folder` if that pays, and return how it does.

    None where there is no one s to start from: the advice is no query scale, or no scale was fitted to the model's answers.
    """
    if advice.fitted is None or advice.setting.attention is None:
        return None
    log.warning("ssmax-eval: note: fits an s for each head, and checks it on the held-out prompts")
    values = fitted(asked, advice.fitted, options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder) as place:
        retrofit(
            asked.subject.reference,
            f"ssmax:s={advice.fitted:.4g}",
            place,
            options.dtype,
            advice.setting.position.rope,
            {layer: {"s": each} for layer, each in values.items()},
            options.trust_remote_code,
            asked.longest,
        )
        share, depths = CHECKS[0]
        grid = asked.grid(share, len(ROUNDS), depths)
        label = f"{advice.model}, s for each head"
        runs = run_probes([make({label: str(place)}, grid)], {label: str(place)}, [AS_TRAINED], options)
        found = beside(tables(runs).assign(series=label), advice, label)
        kept = PerHead(*found, values)
        if not kept.pays:
            shutil.rmtree(place)
    return kept


def beside(rows: pd.DataFrame, advice: Advice, label: str) -> tuple[float, float, float, float, int]:
    """Return accuracy with an s for each head and in the setting advised, the interval of their difference, and beyond which length."""
    advised = advice.held_out[advice.held_out["series"] == advice.name]
    advised = advised[advised["prompt_sha256"].isin(rows["prompt_sha256"])]
    both, beyond = pd.concat([advised, rows], ignore_index=True), decisive(advice)
    table = statistics.compare(both[both["context_length"] > beyond], advice.name, ())
    line = table[table["series"] == label].iloc[0]
    return line["accuracy"], line["accuracy_baseline"], line["low"], line["high"], beyond


def fitted(asked: Asked, s: float, options: RunOptions) -> dict[int, list[float]]:
    """Return each head's s, by layer, fitted on the prompts that the needed scale was measured on; no check reads these."""
    model, tokenizer = asked.subject.load(options)
    probe = make(asked.models, asked.grid(NEEDED[0], SEED, NEEDED[1]))
    prompts = [probe.prompt(tokenizer, sample) for sample in probe.plan()]
    with Setting.of(f"ssmax:s={s:.4g}")(model, options.reaches):
        factors = factors_of(TransformersReader(model, tokenizer), prompts)
    return {layer: [s * factor for factor in each] for layer, each in factors.items()}


def factors_of(reader: TransformersReader, prompts: Iterable[Prompt]) -> dict[int, list[float]]:
    """Return, by layer, each head's factor on the queries of question and answer under which the answers are likeliest.

    What comes before the question is read once. Adam minimises the mean nll of an answer's tokens plus RIDGE (ln factor)^2.
    """
    model, indices = reader.model, layer_indices(reader.model)
    scaled = {indices[name] for name in mechanisms_of(model)}  # a layer with a window has none
    ln = {layer: torch.zeros(n, requires_grad=True) for layer, n in heads_by_layer(model).items() if layer in scaled}
    learning = [each for each in model.parameters() if each.requires_grad]
    for each in learning:  # their gradients would be as large as the model
        each.requires_grad_(False)
    try:
        fit(model, ln, [Tail(reader, prompt) for prompt in prompts])
    finally:
        for each in learning:
            each.requires_grad_(True)
    return {layer: each.detach().exp().tolist() for layer, each in ln.items()}


def fit(model: PreTrainedModel, ln: Mapping[int, Tensor], read: Sequence["Tail"]) -> None:
    """Move ln factors to where answers are likeliest."""
    optimizer = torch.optim.Adam(ln.values(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for each in read:
            (each.nll(model, ln) / len(read)).backward()
        for heads in ln.values():
            (RIDGE * heads.square().sum()).backward()
        optimizer.step()


class Tail:
    """A prompt whose question and answer are read again and again, with gradients of what multiplies their queries."""

    def __init__(self, reader: TransformersReader, prompt: Prompt) -> None:
        self.again = reader.again([prompt], prompt.question_start)
        # what inference mode made takes part in no gradient
        self.again.ids = self.again.ids.clone()
        for layer in self.again.cache.layers if self.again.cache else ():
            layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        self.answer = torch.tensor(prompt.ids[-prompt.answer_length :], device=self.again.ids.device)

    def nll(self, model: PreTrainedModel, ln: Mapping[int, Tensor]) -> Tensor:
        """Return the mean nll of the answer's tokens, nats."""
        ids = self.again.ids if self.again.whole else self.again.ids[:, self.again.start :]
        edits = {layer: Edit(self.again.rows, factor=each.exp()) for layer, each in ln.items()}
        with edited(model, edits):
            logits = model(input_ids=ids, **self.again.options()).logits[0, -len(self.answer) :]
        return torch.nn.functional.cross_entropy(logits.float(), self.answer)
