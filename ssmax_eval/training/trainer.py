"""transformers' Trainer with weighted tokens, a mechanism that can come late, and the few numbers worth watching."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import UserError
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.mechanism import Mechanism
from ..position.bias import Bias
from ..progress import Progress
from .examples import ANSWER, TEXT
from .recipes import Recipe


def weighted_nll(logits: Tensor, ids: Tensor, kinds: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of weight * nll, and float32 (4,): text's nll and tokens, answers' tokens right and in all.

    logits (batch, length, vocabulary); ids and kinds (batch, length) of the same sequences; weights by kind.
    """
    logits, targets, kinds = logits[:, :-1].float(), ids[:, 1:], kinds[:, 1:]
    nll = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    with torch.no_grad():
        text, answer = kinds == TEXT, kinds == ANSWER
        right = (logits.argmax(-1) == targets) & answer
        seen = torch.stack([(nll * text).sum(), text.sum(), right.sum(), answer.sum()])
    return (nll * weights[kinds]).sum(), seen


def masked_nll(logits: Tensor, ids: Tensor, shown: Tensor, kinds: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return what weighted_nll does of the tokens that are masked in `shown`, each predicted where it stands; others have no nll."""
    masked = shown != ids
    nll = cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
    with torch.no_grad():
        text, answer = masked & (kinds == TEXT), masked & (kinds == ANSWER)
        right = (logits.argmax(-1) == ids) & answer
        seen = torch.stack([(nll * text).sum(), text.sum(), right.sum(), answer.sum()])
    return (nll * weights[kinds] * masked).sum(), seen


class WeightedTrainer(Trainer):
    """Train on the loss sum(weight * nll) / tokens, the weight that of the token's kind in the recipe.

    An encoder's tokens that are not masked have no nll.

    The divisor is constant, so that gradients are the same whatever the number of processes. Nothing here waits for the
    device between two lines of the log.
    """

    def __init__(self, recipe: Recipe, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = False
        by_kind = [recipe.text_weight, recipe.text_weight, recipe.fact_weight, recipe.answer_weight]
        self.weights = torch.tensor(by_kind, device=self.args.device)
        self.seen: list[Tensor] = []  # of each step since the last line
        nll = masked_nll if recipe.is_encoder else weighted_nll
        self.nll: Any = torch.compile(nll) if self.args.torch_compile else nll

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any) -> Any:
        shown = [inputs["shown"]] if "shown" in inputs else []
        outputs = model(input_ids=(shown or [inputs["input_ids"]])[0], use_cache=False)
        total, seen = self.nll(outputs.logits, inputs["input_ids"], *shown, inputs["kinds"], self.weights)
        self.seen.append(seen)
        loss = total / inputs["input_ids"].numel()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            sums = torch.stack(self.seen).sum(0)
            text, text_tokens, right, answers = self.accelerator.reduce(sums).tolist()
            logs |= {"text_loss": text / max(1, text_tokens), "recall": right / max(1, answers)}
            self.seen.clear()
        super().log(logs, start_time)

    def _save(self, *arguments: Any, **options: Any) -> None:
        """Write a checkpoint under the model's own tensor names: resuming reads it as it is, and drops names it does not know."""
        model: Any = self.model
        before = getattr(model, "_weight_conversions", None)
        model._weight_conversions = []
        try:
            super()._save(*arguments, **options)
        finally:
            model._weight_conversions = before

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Decay matrices and embeddings only (the paper's rule): not s, b, p_n, norms, biases, or tables."""
        spared = {id(parameter) for parameter in undecayed(model)}
        return [name for name, p in model.named_parameters() if p.ndim >= 2 and id(p) not in spared]


def undecayed(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield what the mechanisms and biases of a model say is no matrix, though it has several axes."""
    for module in model.modules():
        if isinstance(module, Bias):
            yield from module.parameters()
        elif isinstance(module, Mechanism):
            yield from (getattr(module, name) for name in module.undecayed)


class LateMechanism(TrainerCallback):
    """Keep the mechanism off until a step, and on from there: the paper's swap in the final phase of training."""

    def __init__(self, model: PreTrainedModel, first_step: int) -> None:
        self.mechanisms, self.first_step = list(mechanisms_of(model).values()), first_step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for mechanism in self.mechanisms:
            mechanism.active = state.global_step >= self.first_step

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for mechanism in self.mechanisms:
            mechanism.active = True


class Watch(TrainerCallback):
    """Show progress and write training_log.jsonl: step, tokens, seconds, loss, recall, lr, and what the mechanisms learned.

    progress: in steps, of several trainings of which this is one; None makes one of its own, in the first process alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: Recipe,
        title: str,
        file: Path,
        seconds_before: float = 0.0,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.recipe, self.title, self.file = model, recipe, title, file
        self.started = time.perf_counter() - seconds_before
        self.progress, self.is_one_of_several = progress, progress is not None
        self.figures = ""
        self.stepped = 0

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self.started, 2)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.began = time.monotonic()
        if self.progress is not None:
            self.progress.skip(state.global_step)
        elif state.is_world_process_zero:
            self.progress = Progress(state.max_steps - state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.stepped += 1
        if self.progress is not None:
            speed = self.stepped * self.recipe.tokens_per_step / (time.monotonic() - self.began)
            step = f"step {state.global_step:,} of {state.max_steps:,}"
            self.progress.advance(1, self.title, f"{step}{self.figures}, {speed:,.0f} tokens/s")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if "loss" not in (logs or {}) or not state.is_world_process_zero:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"loss: not finite at step {state.global_step}; lower --set learning_rate, and start over with --fresh"
            )
        line = {"step": state.global_step, "tokens": state.global_step * self.recipe.tokens_per_step}
        line |= {
            "seconds": self.seconds,
            **{key: logs[key] for key in ("loss", "text_loss", "recall", "learning_rate")},
        }
        line |= self.learned()
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        shown = {"loss": "loss", "recall": "recall", "s_mean": "mean s"}
        self.figures = "".join(f", {word} {line[key]:.3g}" for key, word in shown.items() if key in line)

    def close(self) -> None:
        """Take the progress of this model alone away."""
        if self.progress is not None and not self.is_one_of_several:
            self.progress.close()

    def learned(self) -> dict[str, float]:
        """Return the least, mean and greatest value over layers and heads of what the mechanisms learn."""
        values: dict[str, list[Tensor]] = {}
        mechanisms = mechanisms_of(self.model).values()
        for name, parameter in nn.ModuleList(mechanisms).named_parameters():  # one that layers share counts once
            values.setdefault(name.split(".", 1)[1], []).append(parameter.detach().float().flatten().cpu())
        for mechanism in mechanisms:
            for name, numbers in mechanism.learned().items():
                if name not in dict(mechanism.named_parameters()):  # made of several
                    values.setdefault(name, []).append(torch.tensor(numbers))
        found: dict[str, float] = {}
        for name, parts in values.items():
            every = torch.cat(parts)
            found |= {
                f"{name}_min": every.min().item(),
                f"{name}_mean": every.mean().item(),
                f"{name}_max": every.max().item(),
            }
        return found
