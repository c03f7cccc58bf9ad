"""What the headers of safetensors files say of their weights, read before any memory is taken for them."""

from pathlib import Path

from ..disk import json_of
from ..errors import UserError
from .sources import ModelSource

LONGEST = 100_000_000  # bytes of a header, as safetensors has it


def shapes_in(file: Path, reference: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a safetensors file, from its header. Raises UserError for one that is broken."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > LONGEST:
                raise ValueError(f"a header of {length} bytes")
            header = json_of(stream.read(length))
        told = {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
        if not all(type(size) is int and size >= 0 for shape in told.values() for size in shape):
            raise ValueError("a shape that is none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model {reference!r}: {file.name} is broken ({error}); get it again") from error
    return told


def shapes_of(source: ModelSource) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor that a checkpoint's weight files hold. Raises UserError."""
    return {name: shape for file in source.weights for name, shape in shapes_in(file, source.reference).items()}


def refuse_more_layers(source: ModelSource) -> None:
    """Raise UserError for a config of more layers than its weight files hold tensors: its model alone would take all memory."""
    config = source.config()
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            layers = part.get(name)
            if isinstance(layers, int) and layers > 100 and layers > (held := len(shapes_of(source))):
                raise UserError(
                    f"model {source.reference!r}: {name} is {layers:,} in its config, and its files hold {held:,} tensors; "
                    "they are not of one model"
                )
