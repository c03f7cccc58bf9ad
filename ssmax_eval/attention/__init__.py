"""Attention laws, the attention function, and what is seen of it; called, the package is the attention probe (api.attention)."""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """Lets `ssmax_eval.attention(models)` and `ssmax_eval.attention.laws` both be what they look like."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from ..api import attention

        return attention(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
