"""What the task files name; all of it is ssmax_eval's."""

from ssmax_eval.harness.documents import choice_prompts, loss_documents, needle_prompts
from ssmax_eval.harness.tasks import ChoiceTask, LossTask, MassTask, NeedleTask

__all__ = ["ChoiceTask", "LossTask", "MassTask", "NeedleTask", "choice_prompts", "loss_documents", "needle_prompts"]
