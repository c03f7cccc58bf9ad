"""Stick-breaking attention: keys take their share of what nearer ones have left, one after the other."""

from torch import Tensor
from torch.nn import functional as F

from .mechanism import HIDDEN, Mechanism
from .registry import register
from .seen import Seen


@register
class StickBreaking(Mechanism):
    """weight of key j = sigmoid(z_j) times the product of 1 - sigmoid(z_k) over the nearer keys k; the rest goes nowhere.

    A row's own key takes no part, so a row that sees no other gets zeros. Nearness is the only position that it knows: the
    paper has neither RoPE nor a bias.
    """

    name = "stick-breaking"
    reference = "Tan et al., arXiv 2410.17980"
    choices = "a row's own key is left out, as in the authors' code"
    causal_only = True
    swap = False
    sparse = True
    normalised = False

    def weights(self, scores: Tensor, seen: Seen) -> Tensor:
        z = scores.masked_fill(seen.distance == 0, HIDDEN)
        passed = F.logsigmoid(-z)  # 0 for keys that take no part
        # summed from the row on; a total minus the sum from the start would cancel
        nearer = F.pad(passed.flip(-1).cumsum(-1).flip(-1)[..., 1:], (0, 1))
        return (F.logsigmoid(z) + nearer).exp()
