"""Scale-invariant attention: scores are spread and lowered by distance, so that each range of distances counts alike."""

from torch import Tensor

from .mechanism import Layer, Mechanism, positive
from .registry import register
from .seen import Seen


@register
class ScaleInvariant(Mechanism):
    """weights = softmax(a z - m), a = sqrt(1 + m), m = 2 ln(1 + t / tau), t the distance in tokens, tau 10; none learned.

    If z is a standard normal number, the expected weight before the sum falls as 1 / (1 + t / tau): 10 to 100 tokens back count
    as much as 100 to 1,000. The paper has it with p-RoPE.
    """

    name = "scale-invariant"
    reference = "Anson et al., arXiv 2505.17083"
    choices = "the formula is derived from the paper's conditions, and a note on it has the same; a position's bias is added afterwards"
    swap = False

    def __init__(self, layer: Layer, *, tau: float = 10.0) -> None:
        super().__init__(layer)
        self.tau = positive("tau", tau)

    def scores(self, q: Tensor, k: Tensor, seen: Seen) -> Tensor:
        lowered = 2 * (seen.distance / self.tau).log1p()
        return (1 + lowered).sqrt() * super().scores(q, k, seen) - lowered
