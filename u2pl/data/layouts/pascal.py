"""PASCAL VOC 2012 and SBD: VOC's train and val with VOC's own masks; SBD gives the rest of train_aug.

No image of VOC's val is ever taken from SBD.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from u2pl.data.images import decode_mask
from u2pl.data.layouts.layout import Layout, Plan, by_tail, check_ids, decode_ids
from u2pl.data.lists import sort_ids
from u2pl.data.mat import read_segmentation
from u2pl.data.sources.unpack import open_archive
from u2pl.errors import UserError


def _plan(paths: Mapping[str, Path]) -> Plan:
    with open_archive(paths["voc"]) as voc:
        lists = by_tail(voc, r"ImageSets/Segmentation/(train|val)\.txt")
        texts = dict(voc.read(lists.values()))
        for name in ("train", "val"):
            if name not in lists:
                raise UserError(voc.path, "no member", f"ImageSets/Segmentation/{name}.txt")
        ids = {name: decode_ids(texts[lists[name]], voc.path, lists[name]) for name in ("train", "val")}
        voc_images = by_tail(voc, r"JPEGImages/([^/]+)\.jpg")
        voc_masks = by_tail(voc, r"SegmentationClass/([^/]+)\.png")
    with open_archive(paths["sbd"]) as sbd:
        # Below dataset/ alone: benchmark_code_RELEASE/demo/datadir has an img and a cls of its own.
        sbd_images, sbd_masks = by_tail(sbd, r"dataset/img/([^/]+)\.jpg"), by_tail(sbd, r"dataset/cls/([^/]+)\.mat")
        lists = by_tail(sbd, r"dataset/(train|val)\.txt")
        listed = [i for member, text in sbd.read(lists.values()) for i in decode_ids(text, sbd.path, member)]
    if both := set(ids["train"]) & set(ids["val"]):
        raise UserError(paths["voc"], f"{min(both)} in train and val", "disjoint lists")
    # SBD's two lists partition its images; a repacked archive without them offers every mask it has.
    extra = (set(listed) or set(sbd_masks)) - set(ids["train"]) - set(ids["val"])
    check_ids(extra, paths["sbd"])
    lists_out = {
        "train": sort_ids(ids["train"]),
        "train_aug": sort_ids({*ids["train"], *extra}),
        "val": sort_ids(ids["val"]),
    }
    plan = Plan(lists_out)
    for image_id in (*ids["train"], *ids["val"]):
        _add(plan, image_id, "voc", paths, voc_images, voc_masks)
    for image_id in sort_ids(extra):
        _add(plan, image_id, "sbd", paths, sbd_images, sbd_masks)
    return plan


def _add(
    plan: Plan, image_id: str, key: str, paths: Mapping[str, Path], images: dict[str, str], masks: dict[str, str]
) -> None:
    for kind, members, wanted in (("image", images, plan.images), ("mask", masks, plan.masks)):
        if image_id not in members:
            raise UserError(paths[key], f"no {kind} of {image_id}", "every image and mask its lists name")
        wanted[key, members[image_id]] = image_id


def _read_voc_mask(content: bytes, where: str, ignore_label: int) -> NDArray[Any]:
    return decode_mask(content, where)


def _read_sbd_mask(content: bytes, where: str, ignore_label: int) -> NDArray[Any]:
    return read_segmentation(content, where)


PASCAL = Layout(".jpg", frozenset({"voc", "sbd"}), _plan, {"voc": _read_voc_mask, "sbd": _read_sbd_mask})
