"""Weak augmentation, centre crop and normalisation; images stay uint8 until they are on the device."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

LabelResize = Literal["centre", "floor"]
MEAN = (123.675, 116.28, 103.53)  # RGB on 0 to 255, of ImageNet


class WeakAugmentation(v2.Transform):
    """Random scale, horizontal flip (with `mirror`) and random crop of an image and its mask.

    The scale is, with probability 1/2 each, uniform in [scale_range[0], 1] or in [1, scale_range[1]] (the released
    code's). The window is cut before it is resized, so rounding starts at the window and not at the whole image. Pixel
    i of a resized mask is the source's pixel floor(i / scale) (`floor`: the released code's; labels lie up to half an
    output pixel beside the image) or the one at its centre, floor((i + 0.5) / scale) (`centre`).
    An image smaller than the crop is padded at the right and the bottom: the image with the mean colour (zero after
    normalisation), the mask with `pad_label`, a boolean mask with False. Random numbers are torch's global ones; seed
    them to repeat a draw. Images are (3, H, W) uint8, masks (H, W) uint8 or bool; all come out as crop x crop.
    """

    def __init__(
        self, crop: int, scale_range: tuple[float, float] = (0.5, 2.0), pad_label: int = 255,
        mean: Sequence[float] = MEAN, label_resize: LabelResize = "floor", mirror: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.crop, self.scale_range, self.pad_label, self.mean = crop, scale_range, pad_label, tuple(mean)
        self.mirror = mirror
        self.nearest = F.InterpolationMode.NEAREST if label_resize == "floor" else F.InterpolationMode.NEAREST_EXACT

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return self.window(v2.query_size(flat_inputs), self.draw())

    @staticmethod
    def draw() -> list[float]:
        """The random numbers of one augmentation: all that threads must not draw at the same time."""
        numbers: list[float] = torch.rand(5, dtype=torch.float64).tolist()
        return numbers

    def window(self, size: tuple[int, int], draws: Sequence[float]) -> dict[str, Any]:
        """What `transform` does to an image of a size (height, width), given what `draw` gave."""
        (height, width), (shrink, position, flip, y, x) = size, draws
        low, high = self.scale_range
        scale = low + (1 - low) * position if shrink < 0.5 else 1 + (high - 1) * position
        # The window is cut from the source, so that only pixels that stay are resampled: at scale 2 a quarter of the
        # crop's area is read. It may give one pixel too many, which is cut off, never one too few.
        rows, columns = min(height, -int(-self.crop // scale)), min(width, -int(-self.crop // scale))
        return {
            "top": int(y * (height - rows + 1)),
            "left": int(x * (width - columns + 1)),
            "height": rows,
            "width": columns,
            "size": [max(1, round(rows * scale)), max(1, round(columns * scale))],
            "flip": self.mirror and flip < 0.5,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        is_mask = isinstance(inpt, tv_tensors.Mask)
        out = F.crop(inpt, params["top"], params["left"], params["height"], params["width"])
        mode = self.nearest if is_mask else F.InterpolationMode.BILINEAR
        if list(out.shape[-2:]) != params["size"]:
            out = F.resize(out, params["size"], interpolation=mode, antialias=not is_mask)
        if params["flip"]:
            out = F.horizontal_flip(out)
        label = 0 if inpt.dtype == torch.bool else self.pad_label
        return _fit(out, self.crop, 0, 0, label if is_mask else self.mean)


def centre_crop(
    image: Tensor, mask: Tensor, crop: int, ignore: int = 255, mean: Sequence[float] = MEAN
) -> tuple[Tensor, Tensor]:
    """Cut crop x crop pixels around the centre of an image (3, H, W) uint8 and its mask (H, W).

    A smaller image is centred and padded: with the mean colour, and the mask with `ignore`. Padding is then not scored;
    the released code passes class 0 instead.
    """
    height, width = image.shape[-2:]
    top, left = (height - crop) // 2 if height > crop else 0, (width - crop) // 2 if width > crop else 0
    above, before = max(0, crop - height) // 2, max(0, crop - width) // 2
    image, mask = image[..., top : top + crop, left : left + crop], mask[..., top : top + crop, left : left + crop]
    return _fit(image, crop, above, before, mean), _fit(mask, crop, above, before, ignore)


def _fit(values: Tensor, crop: int, above: int, before: int, fill: float | Sequence[float]) -> Any:
    """Cut at the right and the bottom, or pad with `fill` (one number, or one a channel), to crop x crop."""
    height, width = min(values.shape[-2], crop), min(values.shape[-1], crop)
    if values.shape[-2:] == (crop, crop):
        return values
    plain = values.as_subclass(torch.Tensor)
    colour = torch.tensor(fill, dtype=torch.float64).round().to(plain)
    out = colour.reshape(*colour.shape, 1, 1).expand(*plain.shape[:-2], crop, crop).clone()
    out[..., above : above + height, before : before + width] = plain[..., :height, :width]
    return tv_tensors.wrap(out, like=values) if isinstance(values, tv_tensors.TVTensor) else out


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) uint8 -> float32 on the images' device: (value - mean) / std, all on the scale 0 to 255."""
    centre, spread = (_constant(tuple(values), images.device) for values in (mean, std))
    return (images.float() - centre) / spread


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(3, 1, 1), once: a copy from the host makes it wait for the device."""
    with torch.inference_mode(False):  # whoever asks first, training can use it
        return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
