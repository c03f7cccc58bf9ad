"""Long-context evaluation of attention laws. `import ssmax_eval` is instant: names load what they need when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import attention, report
    from .api import loss, needle, train
    from .attention.interface import attach, attention_law, detach
    from .attention.laws import Law, register
    from .errors import UserError
    from .models.checkpoint import save_model
    from .models.load import load_model
    from .models.retrofit import retrofit
    from .models.rope import rope_scaled
    from .results import load_results

_HOMES = {
    "Law": "attention.laws",
    "UserError": "errors",
    "attach": "attention.interface",
    "attention": "attention",
    "attention_law": "attention.interface",
    "detach": "attention.interface",
    "load_model": "models.load",
    "load_results": "results",
    "loss": "api",
    "needle": "api",
    "register": "attention.laws",
    "report": "report",
    "retrofit": "models.retrofit",
    "rope_scaled": "models.rope",
    "save_model": "models.checkpoint",
    "train": "api",
}

__all__ = [
    "Law",
    "UserError",
    "attach",
    "attention",
    "attention_law",
    "detach",
    "load_model",
    "load_results",
    "loss",
    "needle",
    "register",
    "report",
    "retrofit",
    "rope_scaled",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssmax_eval' has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES[name]}", __name__)
    return home if name == _HOMES[name] else getattr(home, name)
