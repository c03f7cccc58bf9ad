"""Long-context evaluation of attention mechanisms. `import ssmax_eval` is instant: names load what they need when first used."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import report
    from .api import function, train
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
    from .probes import PROBES
    from .probes.attention.options import AttentionOptions
    from .probes.loss.options import LossOptions
    from .probes.needed_scale.options import NeededScaleOptions
    from .probes.needle.options import NeedleOptions
    from .probes.ruler.options import RulerOptions
    from .results import load_results
    from .setting import Setting

    # for type checkers; at run time every probe of PROBES is a function, made when it is first used
    attention = function(AttentionOptions, PROBES["attention"])
    loss = function(LossOptions, PROBES["loss"])
    needed_scale = function(NeededScaleOptions, PROBES["needed-scale"])
    needle = function(NeedleOptions, PROBES["needle"])
    ruler = function(RulerOptions, PROBES["ruler"])

_HOMES = {
    "Bias": "position.bias",
    "Layer": "mechanisms.mechanism",
    "Mechanism": "mechanisms.mechanism",
    "QueryScale": "mechanisms.scales",
    "Setting": "setting",
    "UserError": "errors",
    "attach": "mechanisms.attach",
    "detach": "mechanisms.attach",
    "import_file": "mechanisms.files",
    "load_model": "models.load",
    "load_results": "results",
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
    "needed_scale",
    "needle",
    "register",
    "register_bias",
    "report",
    "retrofit",
    "ruler",
    "save_model",
    "train",
]


def __dir__() -> list[str]:
    from .probes import PROBES

    return sorted({*__all__, *(kind.function for kind in PROBES.values())})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = importlib.import_module(f".{_HOMES[name]}", __name__)
        return home if name == _HOMES[name] else getattr(home, name)
    probes = {} if name.startswith("_") else importlib.import_module(".probes", __name__).PROBES
    if any(kind.function == name for kind in probes.values()):
        return getattr(importlib.import_module(".api", __name__), name)
    raise AttributeError(f"module 'ssmax_eval' has no attribute {name!r}")
