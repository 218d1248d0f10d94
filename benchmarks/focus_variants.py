"""Changes to the Twin Focus Loss that the studies try beside it, as models of their own.

    fuxictr run --expid TF4CTR_frappe --set model=focus_variants:DetachedFocus

with ``benchmarks/`` on ``PYTHONPATH``.
"""

from torch import Tensor

from fuxictr_tf4ctr.twin.loss import TwinFocusLoss, focus_weights
from model_zoo.TF4CTR import TF4CTR


class _DetachedLoss(TwinFocusLoss):
    def streams(
        self,
        logit_simple: Tensor,
        logit_complex: Tensor,
        y_true: Tensor,
        row_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        plain = TwinFocusLoss(gamma=0, reduction="none")
        weights = focus_weights(
            logit_simple.detach(), logit_complex.detach(), y_true, self.c, self.gamma
        )
        losses = plain.streams(logit_simple, logit_complex, y_true, row_weight)
        simple, complex_ = (w * loss for w, loss in zip(weights, losses, strict=True))
        return simple.mean(), complex_.mean()


class DetachedFocus(TF4CTR):
    """TF4CTR whose focus weights are constants: no gradient flows through them.

    A stream then learns by the cross entropy's own gradient, weighted sample by sample; the
    published loss adds a term that pushes the complex stream towards certainty.
    """

    def __init__(self, *args, **params) -> None:
        super().__init__(*args, **params)
        if self.twin_focus is not None:
            self.twin_focus = _DetachedLoss(
                self.twin_focus.c, self.twin_focus.gamma, self.twin_focus.alpha
            )
