"""Checkpoints that carry their mechanism: a model type of their own, so that no plain model can load them by mistake.

`ssmax_llama` is Llama with a mechanism in every attention layer: the same weights and config, plus `*.ssmax.*` tensors, an
`ssmax` entry in the config, and an `auto_map` to a three-line file that asks this package for the classes. So
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` opens it, with lm-eval on top of that, and
`load_model` needs no remote code at all. A model without one is saved as the plain model it is.
"""

from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..errors import UserError, first_line, reading
from ..mechanisms.attach import attach, mechanisms_of
from ..mechanisms.implementation import IMPLEMENTATION, OURS
from ..mechanisms.mechanism import shared_parameters
from ..mechanisms.spelling import check_entry
from ..position.learned import take_table_out
from .sharing import fill, join, own_tables, separate

PREFIX = "ssmax_"
OF = "_of_"  # between a class and its base in a qualified name
# while from_pretrained runs: {parameter of a later layer's mechanism: that of the first layer's with which it is one}
LOADING: ContextVar[dict[str, str] | None] = ContextVar("LOADING", default=None)
REMOTE_FILE = "modeling_ssmax.py"
REMOTE_CODE = '''"""Opens this checkpoint with {opened} and trust_remote_code=True; the classes are ssmax_eval's."""

from ssmax_eval.models.checkpoint import classes

{config}, {model} = classes("{base}")
'''
# which Auto class opens a model type, and as what: the first that knows it
OPENERS: dict[Any, Any] = {
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForMaskedLM: MODEL_FOR_MASKED_LM_MAPPING,
}


def opener(base: str) -> Any:
    """Return the Auto class that opens a plain model type; None for a type that is no language model."""
    known = base in CONFIG_MAPPING
    return next((auto for auto, models in OPENERS.items() if known and CONFIG_MAPPING[base] in models), None)


@cache
def classes(base: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Return the config and model class of `ssmax_<base>`, registered with the Auto classes. Raises UserError."""
    opened = None if base.startswith(PREFIX) else opener(base)
    if opened is None:
        raise UserError(f"model type {PREFIX}{base}: transformers has no language model of type {base!r}")
    plain_config = CONFIG_MAPPING[base]
    plain_model: type[PreTrainedModel] = OPENERS[opened][plain_config]

    def remain(cls: type, auto_class: str = "") -> None:
        """Keep the classes out of transformers' own copying of remote code: the config below writes the file."""

    def is_custom_code(cls: Any) -> bool:
        """Say no: of code that is not its own, transformers leaves buffers that no checkpoint holds without values."""
        return False

    def initialise(self: PreTrainedModel, config: PreTrainedConfig, *arguments: Any, **options: Any) -> None:
        for part in (config, config.get_text_config()):
            if part._attn_implementation not in (None, IMPLEMENTATION):
                raise dropping(part._attn_implementation)
        check_entry(getattr(config, "ssmax", None), type(self).__name__)
        plain_model.__init__(self, config, *arguments, **options)
        if config.ssmax.get("position") is not None:  # which stands in the place of a table, where there was one
            take_table_out(self)
        attach(self, config.ssmax["attention"], bias=config.ssmax.get("position"))
        if (ties := LOADING.get()) is not None:
            ties |= separate(self)

    def from_pretrained(cls: Any, folder: Any, *arguments: Any, **options: Any) -> Any:
        wants_info = options.pop("output_loading_info", False)
        ties: dict[str, str] = {}
        token = LOADING.set(ties)
        try:
            model, info = plain_model.from_pretrained.__func__(
                cls, folder, *arguments, output_loading_info=True, **options
            )
        finally:
            LOADING.reset(token)
        join(model, ties)
        refuse_misfits(folder, model, info)
        return (model, info) if wants_info else model

    def tie_weights(self: PreTrainedModel, missing_keys: set[str] | None = None, **options: Any) -> None:
        plain_model.tie_weights(self, missing_keys=missing_keys, **options)
        if missing_keys is not None:  # a checkpoint is being loaded
            fill(self, LOADING.get() or {}, missing_keys)

    def set_attn_implementation(self: PreTrainedModel, implementation: Any, *arguments: Any, **options: Any) -> None:
        if implementation not in OURS and mechanisms_of(self):
            raise dropping(implementation)
        plain_model.set_attn_implementation(self, implementation, *arguments, **options)

    def save_pretrained(
        self: PreTrainedModel, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, **options: Any
    ) -> None:
        """Write the tensors under the model's own names: the conversions from other names are kept by type, and none is for ours."""
        state_dict = own_tables(self) if state_dict is None else state_dict
        options["save_original_format"] = False
        plain_model.save_pretrained(self, save_directory, is_main_process, state_dict, **options)

    def to_json_file(self: PreTrainedConfig, json_file_path: Any, *arguments: Any, **options: Any) -> None:
        """Write the file that auto_map names with the config that says so: in time for what is pushed to a hub."""
        plain_config.to_json_file(self, json_file_path, *arguments, **options)
        names = {"config": config_class.__name__, "model": model_class.__name__, "opened": opened.__name__}
        text = REMOTE_CODE.format(**names, base=base)
        Path(json_file_path).with_name(REMOTE_FILE).write_text(text)

    stem = plain_config.__name__.removesuffix("Config")
    config_class = type(
        f"SSMax{stem}Config",
        (plain_config,),
        {
            "model_type": PREFIX + base,
            "register_for_auto_class": classmethod(remain),
            "to_json_file": to_json_file,
            "__module__": __name__,
        },
    )
    model_class = type(
        f"SSMax{plain_model.__name__}",
        (plain_model,),
        {
            "config_class": config_class,
            "__init__": initialise,
            "from_pretrained": classmethod(from_pretrained),
            "save_pretrained": save_pretrained,
            "is_custom_code": classmethod(is_custom_code),
            "tie_weights": tie_weights,
            "set_attn_implementation": set_attn_implementation,
            "register_for_auto_class": classmethod(remain),
            # s times ln n is a temperature: never rounded to bfloat16
            "_keep_in_fp32_modules_strict": {*(plain_model._keep_in_fp32_modules_strict or ()), "ssmax"},
            "__module__": __name__,
        },
    )
    for each in (config_class, model_class):
        each.__qualname__ = f"{each.__name__}{OF}{base}"  # two types can share their plain model
    AutoConfig.register(PREFIX + base, config_class)
    opened.register(config_class, model_class)
    return config_class, model_class


def __getattr__(name: str) -> type:
    """Return a class of `ssmax_<base>` by its qualified name: where pickle finds it, in a process that has not made it yet."""
    with suppress(UserError):
        for each in classes(name.partition(OF)[2]):
            if each.__qualname__ == name:
                return each
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def refuse_misfits(folder: Any, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Raise UserError for a mechanism's tensors too many or missing: transformers runs on, with whatever the memory held as s."""
    if misfits := sorted(key for key in (*info["missing_keys"], *info["unexpected_keys"]) if ".ssmax." in key):
        raise UserError(
            f"model {str(folder)!r}: its config names attention {model.config.ssmax['attention']}, which does not fit the "
            f"ssmax tensors of its weights ({len(misfits)} too many or missing, {misfits[0]} first); it would compute something else"
        )


def dropping(implementation: Any) -> UserError:
    return UserError(
        f"attention implementation {implementation!r}: it would drop the model's mechanism; leave it out, or take the mechanism off first: "
        "ssmax_eval.load_model(..., attention='softmax')"
    )


def with_mechanism(model: PreTrainedModel) -> PreTrainedModel:
    """Give a model with a mechanism attached the class `ssmax_<type>`, and one without its plain class, in place."""
    config = model.config
    base = config.model_type.removeprefix(PREFIX)
    carries = bool(mechanisms_of(model))
    if carries == config.model_type.startswith(PREFIX):
        return model
    config_class, model_class = classes(base)
    plain_config, plain_model = config_class.__mro__[1], model_class.__mro__[1]
    if not carries:
        config.__class__, config.model_type, model.__class__ = plain_config, base, plain_model
        del config.auto_map
        model._weight_conversions = None  # what a plain checkpoint's names are is for transformers to say, by its type
        return model
    if type(model) is not plain_model:
        raise UserError(
            f"{type(model).__name__}: only {plain_model.__name__} of {base!r} can be saved with a mechanism"
        )
    opened = opener(base)
    assert opened is not None
    config.__class__ = config_class
    config.model_type = PREFIX + base
    config.auto_map = {
        "AutoConfig": f"{REMOTE_FILE.removesuffix('.py')}.{config_class.__name__}",
        opened.__name__: f"{REMOTE_FILE.removesuffix('.py')}.{model_class.__name__}",
    }
    model.__class__ = model_class
    return model


def refuse_unsavable(model: PreTrainedModel) -> None:
    """Raise UserError for a model with quantized weights or an adapter: it can be read, but not trained, nor saved as it computes."""
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"{type(model).__name__}: an adapter lies on its weights, and nothing but the adapter would be saved; merge it into them "
            "first (peft: merge_and_unload)"
        )
    packed = (
        name
        for name, each in model.named_parameters()
        if not each.is_floating_point() or type(each.data) not in (torch.Tensor, torch.nn.Parameter)
    )
    name = next(packed, None)
    if name is not None or getattr(model, "is_quantized", False):
        how = getattr(getattr(model, "quantization_method", None), "value", "its own way")
        raise UserError(
            f"{type(model).__name__}: its weights are quantized ({how}; {name or 'all'} first), and can be read, but neither trained "
            "nor saved anew; start from the checkpoint that they were made of"
        )


def try_saving(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a tokenizer that can be used, but not saved: before a training, and not at its end."""
    with reading(f"tokenizer {tokenizer.name_or_path!r}"), TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write a model, its mechanism and its tokenizer as a transformers checkpoint, and return the folder.

    A model with a mechanism attached (attach()) becomes one of class `ssmax_<type>`, its learned values are saved as they are.
    Shards stay under 15 MB, so that a repository takes them. Raises UserError, also for what cannot be opened again as it is.
    """
    refuse_unsavable(model)
    with_mechanism(model).save_pretrained(folder, max_shard_size="15MB")
    refuse_incomplete(model, folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def refuse_incomplete(model: PreTrainedModel, folder: str | Path) -> None:
    """Raise UserError unless a checkpoint just written holds every tensor that its model asks for when it is opened again.

    Everything but the values is loaded: they go to the meta device, one after the other.
    """
    name = type(model).__name__
    opened = model.config.model_type.startswith(PREFIX)
    plain: Any = type(model).__mro__[1] if opened else type(model)  # ours would part what layers share, to fill it
    options = {"device_map": "meta", "output_loading_info": True, "local_files_only": True}
    try:
        _, info = plain.from_pretrained.__func__(type(model), folder, **options)
    except Exception as error:  # of any kind: the same stands before whoever opens it
        raise UserError(f"{name}: what was saved of it cannot be opened again ({first_line(error)})") from error
    shared = shared_parameters(mechanisms_of(model))  # which a file holds once
    if lost := sorted({*info["missing_keys"]} - shared.keys()):
        raise UserError(
            f"{name}: {len(lost)} of its weights would be lost ({lost[0]} first): transformers does not write them as it asks for "
            "them; use another release of it, or change the model each time that it is opened (--attention, --rope-...)"
        )


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Round a model's weights to dtype in place, but not what its mechanism learned."""
    for name, parameter in model.named_parameters():
        if ".ssmax." not in name:
            parameter.data = parameter.data.to(dtype)
    return model
