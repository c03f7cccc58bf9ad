"""Who reads a model: the one place that chooses a reader."""

from ..models.encoders import HEAD, is_encoder
from ..models.foreign import Endpoint, Function
from ..models.subjects import RunOptions, Subject
from .endpoint import EndpointReader
from .function import FunctionReader
from .masked import MaskedReader
from .offered import offered
from .reader import Reader
from .transformers import TransformersReader


def open_reader(each: Subject, options: RunOptions) -> Reader:
    """Load a model, or reach it, and return its reader. Raises UserError."""
    if isinstance(each.foreign, Function):
        return FunctionReader(each.foreign)
    if isinstance(each.foreign, Endpoint):
        return EndpointReader(each.foreign)
    model, tokenizer = each.load(options)
    return (MaskedReader if is_encoder(model) else TransformersReader)(model, tokenizer)


def gives_of(each: Subject) -> tuple[frozenset[str], str]:
    """Return what a model's reader gives, nothing loaded, and why it is not more; a server is asked.

    Raises UserError for a server that does not answer.
    """
    if isinstance(each.foreign, Function):
        return FunctionReader.gives, "a function gives text alone"
    if isinstance(each.foreign, Endpoint):
        found = offered(each.foreign)
        return found.gives, found.why or "a server shows no attention"
    if fills_masks(each):
        return MaskedReader.gives, "an encoder writes nothing, and predicts no token from those before it"
    return TransformersReader.gives, ""


def fills_masks(each: Subject) -> bool:
    """Tell whether a model is an encoder, from its config alone where it is not loaded."""
    if each.loaded is not None:
        return is_encoder(each.loaded[0])
    named = (each.source.config() if each.source else {}).get("architectures") or [""]
    return isinstance(named, list) and str(named[0]).endswith(HEAD)
