"""AEL's confidence bank: how sure the student is of each class, and which unlabelled images hold which classes."""

import torch
from torch import Tensor, nn

from u2pl.components.adaptive_sampling import class_rates, draw_classes
from u2pl.components.contrast import sample_pixels


class ConfidenceBank(nn.Module):
    """The state of AEL, equal on all ranks, which give it what is of the global batch.

    images: of the unlabelled list; batch: unlabelled images per step. Both 0: there are no flags, and nothing is
    chosen.

    Buffers: confidence (C,), Eq. 7, at first uniform in [0, 1) as in the released code; flags bool (C, images), True
    where the image held the class when the teacher last saw it; chosen and classes, int64 (batch,), the images that the
    next step pastes from, as places in the unlabelled list, and the class that each is chosen for.
    """

    confidence: Tensor
    flags: Tensor
    chosen: Tensor
    classes: Tensor

    def __init__(self, n_classes: int, images: int = 0, batch: int = 0) -> None:
        super().__init__()
        self.register_buffer("confidence", torch.rand(n_classes))
        if batch:
            assert images > 0, "the number of unlabelled images is unknown"
            self.register_buffer("flags", torch.zeros(n_classes, images, dtype=torch.bool))
            self.register_buffer("chosen", torch.zeros(batch, dtype=torch.int64))
            self.register_buffer("classes", torch.zeros(batch, dtype=torch.int64))
            self.choose(torch.rand(2, batch))

    @torch.no_grad()
    def update(self, confidence: Tensor, known: Tensor, momentum: float) -> None:
        """Eq. 7 for a batch's confidences (C,), of the classes that are `known`, bool (C,)."""
        moved = momentum * self.confidence + (1 - momentum) * confidence
        self.confidence.copy_(torch.where(known, moved, self.confidence))

    def note(self, places: Tensor, held: Tensor) -> None:
        """The images at `places` int64 (k,) hold the classes of `held` bool (k, C); of equal places the last counts."""
        order = torch.arange(len(places), device=places.device)
        last = torch.where(places[:, None] == places, order, -1).amax(dim=1)
        self.flags[:, places] = held[last].T

    def choose(self, draws: Tensor) -> None:
        """The images of the next step, for draws (2, batch) uniform in [0, 1): a class each by Eq. 9, then uniformly
        one of the images that hold it, or of all if none does.
        """
        classes = draw_classes(class_rates(self.confidence), draws[0])
        self.chosen.copy_(one_of(self.flags[classes], draws[1]))
        self.classes.copy_(classes)


def one_of(qualified: Tensor, draws: Tensor) -> Tensor:
    """One of the qualified places of each row of bool (k, n), or of all n if none is: int64 (k,), for draws (k,)."""
    return sample_pixels(qualified | ~qualified.any(dim=1, keepdim=True), draws[:, None])[:, 0]
