"""The task class of our lm-eval tasks: documents from documents.py, requests from requests.py, a metric for each context length."""

import json
import logging
import math
from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from ..data.chat import AUTO, MESSAGES, Chat, chat_asked
from ..errors import UserError
from .documents import tokenizer_of
from .requests import EXACT, MASS

log = logging.getLogger("lm_eval.ssmax_eval")
# what changes a prompt by itself; fewshot_as_multiturn, which is on by default in simple_evaluate, says how a chat template
# writes examples, and there are neither
PROMPT_OPTIONS = {"apply_chat_template": "--apply_chat_template", "system_instruction": "--system_instruction"}


class NeedleTask(ConfigurableTask):
    """Retrieval: acc, the answer is greedy decoding's choice (0 or 1), and nll, of the whole answer in nats; acc_<L> by context length."""

    request_type = EXACT
    reads_chats = True
    by_length: tuple[str, ...] = ("acc",)
    better: dict[str, bool] = {"acc": True, "nll": False}  # noqa: RUF012

    def __init__(self, config: dict[str, Any], **ignored: Any) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self.OUTPUT_TYPE = self.request_type
        self.config.metadata = {**self.config.metadata, "parameters": self.dataset["parameters"]}

    def build_all_requests(self, **options: Any) -> None:
        """Build the requests from the documents as they are, as chats with --apply_chat_template.

        Raises UserError for options that would change a prompt.
        """
        if options.get("apply_chat_template") and self.reads_chats:
            self.read_as_chats(options.get("system_instruction"), options.get("chat_template"))
            # no few-shot examples, so no turns of them
            options |= {"apply_chat_template": False, "system_instruction": None, "fewshot_as_multiturn": False}
        changed = [name for option, name in PROMPT_OPTIONS.items() if options.get(option)]
        changed += [f"--num_fewshot {self.config.num_fewshot}"] if self.config.num_fewshot else []
        if changed:
            raise UserError(
                f"task {self.task_name}: its prompts have exactly as many tokens as asked for; leave {changed[0]} out"
            )
        if options.get("cache_requests"):
            log.info(
                "%s: --cache_requests does not know --metadata, so it keeps and gives nothing here", self.task_name
            )
        super().build_all_requests(**{**options, "cache_requests": False, "rewrite_requests_cache": False})

    def read_as_chats(self, system: str | None, render: Callable[..., str] | None) -> None:
        """Make the documents anew as chats of the tokenizer's template. Raises UserError where lm-eval's model has another."""
        given = {key: value for key, value in (self.config.metadata or {}).items() if key != "parameters"}
        given |= {"chat_template": given.get("chat_template", AUTO)} | ({} if system is None else {"system": system})
        chat = chat_asked(str(given["chat_template"]), system)
        turn = None if chat is None else chat.turn(tokenizer_of(given))
        if turn is None:
            raise UserError(
                f"task {self.task_name}: the tokenizer brings no chat template; leave --apply_chat_template out"
            )
        if render is not None and turn.date is None and chat == Chat(system=system):
            said = [] if system is None else [{"role": "system", "content": system}]
            theirs = render([*said, {"role": "user", "content": MESSAGES[0]}], add_generation_prompt=True)
            if theirs != f"{turn.header}{MESSAGES[0]}{turn.footer}":
                raise UserError(
                    f"task {self.task_name}: the model's chat template is not its tokenizer's default; put chat_template=FILE "
                    "into --metadata, or leave --apply_chat_template's name out"
                )
        self.dataset = self.config.custom_dataset(**given, **(self.config.dataset_kwargs or {}))
        self.config.metadata = {**given, "parameters": self.dataset["parameters"]}

    def construct_requests(self, doc: dict[str, Any], ctx: str, **options: Any) -> Instance:
        arguments = (doc["context"], doc["answer"])
        return Instance(self.request_type, doc, arguments, 0, metadata=options["metadata"])

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        """Return a document's metrics, those by length for its own length only. Raises UserError for a score that is none."""
        metrics = self.score(doc, results[0])
        if not all(math.isfinite(value) for value in metrics.values()):
            raise UserError(
                f"prompt {doc['sample']}: its score is not finite, which is a failure and not a wrong answer"
            )
        return metrics | {f"{name}_{doc['context_length']}": metrics[name] for name in self.by_length}

    def score(self, doc: dict[str, Any], answer: Any) -> dict[str, float]:
        likelihood, is_greedy = answer
        return {"acc": float(is_greedy), "nll": -likelihood}

    def metric_names(self) -> dict[str, bool]:
        """Return each metric, whether higher is better."""
        lengths = self.dataset["parameters"]["context_lengths"]
        return self.better | {f"{name}_{length}": self.better[name] for length in lengths for name in self.by_length}

    def aggregation(self) -> dict[str, Callable[[list[float]], float]]:
        return dict.fromkeys(self.metric_names(), mean)  # lm-eval knows the stderr of its own mean only

    def higher_is_better(self) -> dict[str, bool]:
        return self.metric_names()


class ChoiceTask(NeedleTask):
    """Multiple choice: acc, the right choice is likelier than any other, and nll, of the right one in nats; acc_<L> by context length."""

    def construct_requests(self, doc: dict[str, Any], ctx: str, **options: Any) -> list[Instance]:
        return [
            Instance(
                self.request_type, doc | choice, (doc["context"], choice["answer"]), i, metadata=options["metadata"]
            )
            for i, choice in enumerate(doc["choices"])
        ]

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        return super().process_results(doc, [results])

    def score(self, doc: dict[str, Any], answer: Any) -> dict[str, float]:
        likelihoods = [likelihood for likelihood, _ in answer]
        right = likelihoods[doc["gold"]]
        others = [each for i, each in enumerate(likelihoods) if i != doc["gold"]]
        return {"acc": float(right > max(others)), "nll": -right}


class LossTask(NeedleTask):
    """Loss: nll, nats a token over the last `window` tokens of a document; nll_<L> with context from L tokens before its end."""

    reads_chats = False  # it continues a text
    by_length = ("nll",)
    better: dict[str, bool] = {"nll": False}  # noqa: RUF012

    def score(self, doc: dict[str, Any], answer: Any) -> dict[str, float]:
        return {"nll": -answer[0] / doc["answer_length"]}


class MassTask(NeedleTask):
    """Attention: mass_answer and mass_needle, the largest share that any head's row before the answer has on it; acc and nll with it."""

    request_type = MASS
    by_length = ("mass_answer", "acc")
    better: dict[str, bool] = {"acc": True, "nll": False, "mass_answer": True, "mass_needle": True}  # noqa: RUF012

    def score(self, doc: dict[str, Any], answer: Any) -> dict[str, float]:
        found = json.loads(answer)
        largest = {name: max(max(heads) for heads in found[name]) for name in ("mass_answer", "mass_needle")}
        return {"acc": float(found["correct"]), "nll": found["answer_nll"], **largest}
