"""Small settings, tiny networks and batches, for whoever tests a method."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from u2pl.experiments.settings import SETTINGS, Training
from u2pl.methods import Progress, Setup, build_method

C, IGNORE, SIDE = 5, 255, 33
SMALL: dict[str, Any] = {"r_low": 1, "r_high": 4, "bank_size": 40, "bank_size_background": 60}
SMALL |= {"anchors_per_class": 5, "negatives_per_anchor": 7, "gct_detector_width": 4}


def settings_for(method: str, **values: Any) -> Training:
    """The settings of a method, from values for several."""
    kind = SETTINGS[method]
    return kind(**{name: value for name, value in values.items() if name in kind.model_fields})


class Encoder(nn.Sequential):
    """One stage in place of all."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = super().forward(images)
        return {"layer1": features, "layer3": features, "layer4": features}


class Network(nn.Module):
    """A network's outputs from one convolution of stride 4; dropout: in encoder and representation."""

    def __init__(self, auxiliary: bool = False, dropout: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU()]
        self.encoder = Encoder(*layers, *([nn.Dropout2d(0.2)] if dropout else []))
        self.head = nn.Conv2d(8, C, 1)
        self.representation: nn.Module = nn.Conv2d(8, 6, 1)
        if dropout:
            self.representation = nn.Sequential(self.representation, nn.BatchNorm2d(6), nn.Dropout2d(0.1))
        self.auxiliary = nn.Conv2d(8, C, 1) if auxiliary else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        stages = self.encoder(images)
        features = stages["layer4"]
        output = {"logits": 4 * self.head(features), "representation": self.representation(features), **stages}
        output |= {"features": features, "decoded": features}
        return output | ({"auxiliary": self.auxiliary(features)} if self.auxiliary else {})


def averages(method: Any) -> Iterator[nn.Parameter]:
    """The parameters of the method's teacher or average, if it has one."""
    if hasattr(method, "average"):
        return method.average.parameters()
    return method.teacher.network.parameters() if hasattr(method, "teacher") else iter(())


def build(name: str, network: Any = Network, **changes: Any) -> Any:
    """A method on networks that `network` makes, with a teacher that differs from the student."""
    torch.manual_seed(0)
    method = build_method(name, settings_for(name, **(SMALL | changes)), Setup(network, C, IGNORE, 6, 2))
    for parameter in averages(method):
        parameter.data += 0.1 * torch.randn_like(parameter)
    wake(method)
    return method


def wake(method: Any) -> None:
    """Let a flaw detector see flaws from the first step on: at its start all are about 0, and count as none."""
    if hasattr(method, "detector"):
        last = method.detector.layers[-1]
        last.weight.data *= 10
        last.bias.data += 0.5


def batch(seed: int = 0) -> dict[str, Tensor]:
    """Two images of each stream."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(C, (2, SIDE, SIDE), generator=generator)
    masks[:, :4] = IGNORE
    images = torch.randn(2, 2, 3, SIDE, SIDE, generator=generator)
    return {"image_l": images[0], "image_u": images[1], "mask_l": masks}


def beside(streams: Any, seed: int = 0) -> dict[str, Tensor]:
    """What streams other than the first of each kind add to a batch; the last rows of every image are padding."""
    generator = torch.Generator().manual_seed(200 + seed)
    found = second(seed) if "unlabelled_2" in streams else {}
    if "labelled_2" in streams:
        found["image_l2"] = torch.randn(2, 3, SIDE, SIDE, generator=generator)
        found["mask_l2"] = torch.randint(C, (2, SIDE, SIDE), generator=generator)
    if "ids" in streams:
        found["index_u"] = torch.tensor([1, 3])
    if "chosen" in streams:
        found["image_p"] = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(300 + seed))
    if "oracle" in streams:
        found["mask_u"] = torch.randint(C, (2, SIDE, SIDE), generator=generator)
    if "raw" in streams:
        found["raw_u"] = torch.randint(256, (2, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    if "valid" in streams:
        valid = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
        valid[:, -5:] = False
        found |= {f"valid_{end}": valid for end in ("l", "u", "u2", "l2")}
    return found


def second(seed: int = 0) -> dict[str, Tensor]:
    """What `unlabelled_2` adds to a batch."""
    return {"image_u2": torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(100 + seed))}


def progress(step: int = 1, seed: int = 0, steps: int = 8) -> Progress:
    """Four epochs of two steps."""
    return Progress(step * 4 // steps, 4, step, steps, torch.Generator().manual_seed(seed))
