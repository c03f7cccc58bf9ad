"""Opens this checkpoint with AutoModelForCausalLM and trust_remote_code=True; the classes are ssmax_eval's."""

from ssmax_eval.models.checkpoint import classes

SSMaxLlamaConfig, SSMaxLlamaForCausalLM = classes("llama")
