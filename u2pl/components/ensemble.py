"""Several networks that predict as one."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from u2pl.components.precision import at_least_float32


class MeanOfNetworks(nn.Module):
    """Maps images (B, 3, H, W) to "logits" (B, C, h, w) whose softmax is the mean of the networks' probabilities."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        probs = [at_least_float32(network(images)["logits"]).softmax(dim=1) for network in self.networks]
        return {"logits": torch.stack(probs).mean(dim=0).clamp(min=torch.finfo(probs[0].dtype).tiny).log()}
