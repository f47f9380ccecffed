"""Adaptive Copy-Paste of labelled images and the boxes of adaptive CutMix (AEL, Sec. 3)."""

import numpy as np
import torch
from torch import Tensor


def copy_paste(
    images: Tensor, masks: Tensor, others: Tensor, other_masks: Tensor, valid: Tensor, classes: Tensor, paste: Tensor
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and masks (B, H, W) with all pixels of some classes of another image each.

    others, other_masks: the images pasted from; valid: bool (B, H, W), False where these are padded; classes: int64
    (B, K), those of each image; paste: bool (B,), images that get anything at all.
    """
    drawn = (other_masks[:, None] == classes[:, :, None, None]).any(dim=1)
    inside = drawn & valid & paste[:, None, None]
    return torch.where(inside[:, None], others, images), torch.where(inside, other_masks, masks)


def component_boxes(maps: Tensor, ratio: float, draws: Tensor, otherwise: Tensor) -> Tensor:
    """The bounding box of a connected component of each map: bool (B, H, W), `otherwise` where there is none.

    maps: bool (B, H, W). Of its 8-connected components with more than `ratio` of its pixels, one is chosen by `draws`
    (B,), uniform in [0, 1). On the CPU, as torch cannot label components: waits for the device.
    """
    from scipy import ndimage  # here, since methods and components need torch alone to be imported

    height, width = maps.shape[1:]
    corners = np.full((len(maps), 4), -1)
    for i, (found, draw) in enumerate(zip(maps.cpu().numpy(), draws.tolist(), strict=True)):
        if not found.any():
            continue
        labelled, count = ndimage.label(found, structure=np.ones((3, 3)))
        areas = np.bincount(labelled.ravel(), minlength=count + 1)[1:]
        large = np.flatnonzero(areas > ratio * height * width)
        if len(large):
            rows, columns = ndimage.find_objects(labelled)[large[int(draw * len(large))]]
            corners[i] = rows.start, rows.stop, columns.start, columns.stop
    top, bottom, left, right = torch.from_numpy(corners).to(maps.device)[:, :, None].unbind(dim=1)
    y, x = torch.arange(height, device=maps.device), torch.arange(width, device=maps.device)
    inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    return torch.where((top < 0)[:, :, None], otherwise, inside)
