"""Turn a softmax checkpoint into one with another mechanism, or another RoPE, without training."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ..disk import contents, whole
from ..errors import UserError, first_line, reading
from ..mechanisms.attach import mechanisms_of
from ..mechanisms.layers import layer_indices, layers
from ..mechanisms.spelling import Attention
from ..position.rope import RopeSetting, rope_scaled
from ..position.rotary import rotary_modules
from .checkpoint import save_model
from .load import load_model
from .sources import TRAINING, resolve

AS_IT_IS = RopeSetting()


def retrofit(
    reference: str,
    attention: str | None,
    folder: str | Path,
    dtype: str = "auto",
    rope: RopeSetting = AS_IT_IS,
    values: Mapping[int, Mapping[str, Sequence[float]]] | None = None,
    trust_remote_code: bool = False,
    tried: int | None = None,
) -> Path:
    """Save a model under a mechanism, its learned values at their start: s = 1 / mean(ln n), or `ssmax:s=0.2`.

    reference: a model as load_model takes it; what it learned of that very mechanism it keeps. attention: None keeps its own.
    rope: what becomes of its RoPE, in its config. values: of the mechanism's parameters in place of their start, by layer and
    name, one for each head. trust_remote_code: run code that the checkpoint brings. tried: tokens of the longest text that
    the mechanism was tried on, on the layers that it had there. Returns the folder, which is there whole or not at all and opens like any
    checkpoint of ours. Raises UserError.
    """
    folder = Path(folder)
    refuse_occupied(folder)
    source = resolve(reference)
    asked = None if attention is None else str(Attention.of(attention))
    own = source.config().get("ssmax") if not source.is_gguf else None
    keeps = asked is None or (isinstance(own, dict) and own.get("attention") == asked)
    model, tokenizer = load_model(
        source, attention=None if keeps else asked, dtype=dtype, device="cpu", trust_remote_code=trust_remote_code
    )
    if attention is not None and tried is not None and layers(model, tried) != layers(model):
        raise UserError(
            f"attention {attention}: it was tried on texts of up to {tried:,} tokens, which the windows of some layers hold; in a "
            "checkpoint it leaves these layers alone, and that was not tried: try it on texts longer than the windows"
        )
    indices = layer_indices(model) if values else {}
    for name, mechanism in mechanisms_of(model).items() if values else ():
        for parameter, each in (values or {}).get(indices[name], {}).items():
            with torch.no_grad():
                getattr(mechanism, parameter).copy_(torch.tensor(each))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as made, rope_scaled(model, rope.theta_factor, rope.theta, rope.scaling):
            changed_ones = rotary_modules(model).values() if rope.changes else ()
            for rotary in changed_ones:  # each has a config of its own
                changed: Any = rotary.config
                model.config.get_text_config().rope_parameters = copy.deepcopy(changed.rope_parameters)
            with reading(f"model {source.reference!r}"):
                save_model(model, tokenizer, made)
            if record := source.training():
                record.pop("signs", None)  # of the model before
                # how the weights came about stays true; what the mechanism learned does not
                record |= {} if keeps else {"retrofitted": attention, "learned": {}}
                record |= {"rope": str(rope)} if rope.changes else {}
                (made / TRAINING).write_text(json.dumps(record, indent=2))
    except StrictDataclassError as error:  # rules of its own, which a config looks at when it is written
        raise UserError(
            f"rope {rope}: the config of {type(model).__name__} does not take it ({first_line(error)}); give it each time that the "
            "model is opened"
        ) from error
    except OSError as error:
        refuse_occupied(folder)  # another process was faster
        raise UserError(f"output {str(folder)!r}: cannot be written ({error.strerror}); give another") from error
    return folder


def refuse_occupied(folder: Path) -> None:
    """Raise UserError for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or contents(folder)):
        raise UserError(f"output {str(folder)!r}: it is there already and not empty; give another folder")
