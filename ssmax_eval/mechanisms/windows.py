"""Windows of several sizes: every head sees so many tokens back, and none further."""

from torch import Tensor

from ..errors import UserError
from .mechanism import HIDDEN, Layer, Mechanism
from .registry import register
from .seen import Seen

SHARES = (0.25, 0.5, 1.0, 2.0)  # of w, by group of heads and again by group of layers


@register
class MSWA(Mechanism):
    """weights = softmax(z) within a window of tokens: w/4, w/2, w, 2w over four groups of heads, times as much over four of layers.

    w is the training length unless given. A window holds the row's own token. Windows add up over layers: what is out of one
    layer's window can come by way of tokens between, up to `reach` (arXiv 2501.01039).
    """

    name = "mswa"
    reference = "Xu et al., MSWA, arXiv 2501.01039"
    choices = (
        "w is the training length; sizes are rounded, at least 1 token; where four does not divide heads or layers, groups differ "
        "by one"
    )
    sparse = True

    def __init__(self, layer: Layer, *, window: int = 0) -> None:
        super().__init__(layer)
        for what, count in (("heads", layer.heads), ("layers", layer.layers)):
            if count < len(SHARES):
                raise UserError(
                    f"attention {self.name}: {count} {what} are not four groups; use a model with 4 or more"
                )
        if window < 0:
            raise UserError(
                f"attention option window={window} of {self.name}: allowed are tokens from 1, 0 for the training length"
            )
        self.window = window or layer.train_length
        self.sizes = [self.size(share, layer.index) for share in spread(layer.heads)]

    def size(self, share: float, index: int) -> int:
        """Return the tokens of the window of a group of heads, at a share of w, in the layer at `index`."""
        return max(1, round(self.window * share * spread(self.layer.layers)[index]))

    @property
    def reach(self) -> int:
        return sum(self.size(SHARES[-1], index) - 1 for index in range(self.layer.layers))

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        sizes = seen.distance.new_tensor(self.sizes)[:, None, None]
        return scores.masked_fill(seen.distance >= sizes, HIDDEN).softmax(-1)


def spread(count: int) -> list[float]:
    """Return the share of each of so many heads or layers, in four groups."""
    return [SHARES[len(SHARES) * i // count] for i in range(count)]
