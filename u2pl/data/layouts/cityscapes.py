"""Cityscapes: the fine annotations' train and val. The test split has no public labels and is left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from u2pl.data.images import decode_mask
from u2pl.data.layouts.layout import Layout, Plan, by_tail, check_ids
from u2pl.data.lists import sort_ids
from u2pl.data.sources.unpack import open_archive
from u2pl.errors import UserError


def _plan(paths: Mapping[str, Path]) -> Plan:
    with open_archive(paths["images"]) as archive:
        images = {s: by_tail(archive, rf"leftImg8bit/{s}/[^/]+/([^/]+)_leftImg8bit\.png") for s in ("train", "val")}
    with open_archive(paths["labels"]) as archive:
        masks = {s: by_tail(archive, rf"gtFine/{s}/[^/]+/([^/]+)_gtFine_labelIds\.png") for s in ("train", "val")}
    for key, members in (("images", images), ("labels", masks)):
        check_ids({*members["train"], *members["val"]}, paths[key])
    plan = Plan({s: sort_ids(images[s]) for s in ("train", "val")})
    for split in ("train", "val"):
        for key, present, needed in (("labels", masks, images), ("images", images, masks)):
            if missing := set(needed[split]) - set(present[split]):
                raise UserError(paths[key], f"no {split} file of {min(missing)}", "an image and its labelIds")
        plan.images.update({("images", name): image_id for image_id, name in images[split].items()})
        plan.masks.update({("labels", name): image_id for image_id, name in masks[split].items()})
    if both := set(images["train"]) & set(images["val"]):
        raise UserError(paths["images"], f"{min(both)} in train and val", "ids that are unique across splits")
    return plan


def _read_mask(content: bytes, where: str, ignore_label: int) -> NDArray[Any]:
    ids = decode_mask(content, where)
    labels: NDArray[Any] = train_id_table(ignore_label)[ids]
    if (unknown := labels < 0).any():
        raise UserError(where, f"label id {ids[unknown][0]}", "the ids of cityscapesscripts.helpers.labels")
    return labels


def train_id_table(ignore_label: int) -> np.ndarray:
    """(256,) int16: Cityscapes label id -> train id, `ignore_label` for ids outside evaluation, -1 for unknown ids."""
    from cityscapesscripts.helpers.labels import labels as known

    table = np.full(256, -1, np.int16)
    for label in known:
        if label.id >= 0:
            table[label.id] = ignore_label if label.trainId in (-1, 255) else label.trainId
    return table


CITYSCAPES = Layout(".png", frozenset({"images", "labels"}), _plan, {"labels": _read_mask})
