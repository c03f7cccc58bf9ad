"""What the task files name; all of it is ssmax_eval's."""

from ssmax_eval.harness.documents import loss_documents, needle_prompts
from ssmax_eval.harness.tasks import LossTask, MassTask, NeedleTask

__all__ = ["LossTask", "MassTask", "NeedleTask", "loss_documents", "needle_prompts"]
