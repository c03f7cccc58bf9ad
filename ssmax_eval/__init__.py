"""Long-context evaluation of attention mechanisms. `import ssmax_eval` is instant: names load what they need when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import report
    from .api import attention, loss, needle, train
    from .errors import UserError
    from .mechanisms.attach import attach, detach
    from .mechanisms.files import import_file
    from .mechanisms.mechanism import Layer, Mechanism
    from .mechanisms.registry import register
    from .mechanisms.scales import QueryScale
    from .models.checkpoint import save_model
    from .models.load import load_model
    from .models.retrofit import retrofit
    from .position.bias import Bias, register_bias
    from .results import load_results
    from .setting import Setting

_HOMES = {
    "Bias": "position.bias",
    "Layer": "mechanisms.mechanism",
    "Mechanism": "mechanisms.mechanism",
    "QueryScale": "mechanisms.scales",
    "Setting": "setting",
    "UserError": "errors",
    "attach": "mechanisms.attach",
    "attention": "api",
    "detach": "mechanisms.attach",
    "import_file": "mechanisms.files",
    "load_model": "models.load",
    "load_results": "results",
    "loss": "api",
    "needle": "api",
    "register": "mechanisms.registry",
    "register_bias": "position.bias",
    "report": "report",
    "retrofit": "models.retrofit",
    "save_model": "models.checkpoint",
    "train": "api",
}

__all__ = [
    "Bias",
    "Layer",
    "Mechanism",
    "QueryScale",
    "Setting",
    "UserError",
    "attach",
    "attention",
    "detach",
    "import_file",
    "load_model",
    "load_results",
    "loss",
    "needle",
    "register",
    "register_bias",
    "report",
    "retrofit",
    "save_model",
    "train",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssmax_eval' has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES[name]}", __name__)
    return home if name == _HOMES[name] else getattr(home, name)
