"""Which members of upstream's archives are wanted, under which image id.

Archives hold more than is used: VOC's all object classes and years, SBD's a demo with copies of two images, Cityscapes'
a test split without labels. Only what is named here counts.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from u2pl.data.lists import ID, parse_ids, sort_ids
from u2pl.data.sources.unpack import ArchiveReader, open_archive
from u2pl.errors import UserError

SUFFIX = {"pascal": ".jpg", "cityscapes": ".png"}  # of the images
ARCHIVES = {"pascal": {"voc", "sbd"}, "cityscapes": {"images", "labels"}}


@dataclass
class Plan:
    """What to read: (archive key, member name) -> image id, once for images and once for masks."""

    lists: dict[str, list[str]]
    images: dict[tuple[str, str], str] = field(default_factory=dict)
    masks: dict[tuple[str, str], str] = field(default_factory=dict)


def plan_members(kind: str, paths: dict[str, Path]) -> Plan:
    """The members of the archives at `paths` (by key) and the lists of a data set of this kind.

    Raises UserError for an archive that is missing, unsafe or damaged, or lacks an image, a mask or a list.
    """
    return _plan_pascal(paths) if kind == "pascal" else _plan_cityscapes(paths)


def _by_tail(reader: ArchiveReader, pattern: str) -> dict[str, str]:
    """Member names whose end matches `pattern`, by its first group. Archives differ in their leading folders."""
    found: dict[str, str] = {}
    for name in reader.names:
        if match := re.fullmatch(rf"(?:.*/)?{pattern}", name, re.DOTALL):
            if match[1] in found:
                raise UserError(reader.path, f"{found[match[1]]!r} and {name!r}", "one of them")
            found[match[1]] = name
    return found


def _plan_pascal(paths: dict[str, Path]) -> Plan:
    """VOC train and val with VOC's own masks; SBD gives the rest of train_aug, never an image of VOC val."""
    with open_archive(paths["voc"]) as voc:
        lists = _by_tail(voc, r"ImageSets/Segmentation/(train|val)\.txt")
        texts = dict(voc.read(lists.values()))
        for name in ("train", "val"):
            if name not in lists:
                raise UserError(voc.path, "no member", f"ImageSets/Segmentation/{name}.txt")
        ids = {name: _decode_ids(texts[lists[name]], voc.path, lists[name]) for name in ("train", "val")}
        voc_images = _by_tail(voc, r"JPEGImages/([^/]+)\.jpg")
        voc_masks = _by_tail(voc, r"SegmentationClass/([^/]+)\.png")
    with open_archive(paths["sbd"]) as sbd:
        # Below dataset/ alone: benchmark_code_RELEASE/demo/datadir has an img and a cls of its own.
        sbd_images, sbd_masks = _by_tail(sbd, r"dataset/img/([^/]+)\.jpg"), _by_tail(sbd, r"dataset/cls/([^/]+)\.mat")
        lists = _by_tail(sbd, r"dataset/(train|val)\.txt")
        listed = [i for member, text in sbd.read(lists.values()) for i in _decode_ids(text, sbd.path, member)]
    if both := set(ids["train"]) & set(ids["val"]):
        raise UserError(paths["voc"], f"{min(both)} in train and val", "disjoint lists")
    # SBD's two lists partition its images; a repacked archive without them offers every mask it has.
    extra = (set(listed) or set(sbd_masks)) - set(ids["train"]) - set(ids["val"])
    _check_ids(extra, paths["sbd"])
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
    plan: Plan, image_id: str, key: str, paths: dict[str, Path], images: dict[str, str], masks: dict[str, str]
) -> None:
    for kind, members, wanted in (("image", images, plan.images), ("mask", masks, plan.masks)):
        if image_id not in members:
            raise UserError(paths[key], f"no {kind} of {image_id}", "every image and mask its lists name")
        wanted[key, members[image_id]] = image_id


def _decode_ids(text: bytes, path: Path, member: str) -> list[str]:
    try:
        return parse_ids(text.decode(), f"{path}:{member}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{member}", error, "a list of image ids") from error


def _check_ids(ids: set[str], path: Path) -> None:
    """Ids from file names: each whole, since white space around it would be lost in a list."""
    if bad := [image_id for image_id in sort_ids(ids) if not ID.fullmatch(image_id)]:
        raise UserError(path, f"a file of {bad[0]!r}", "image ids of letters, digits, _ and -")


def _plan_cityscapes(paths: dict[str, Path]) -> Plan:
    """The fine annotations' train and val; the test split has no public labels and is left out."""
    with open_archive(paths["images"]) as archive:
        images = {s: _by_tail(archive, rf"leftImg8bit/{s}/[^/]+/([^/]+)_leftImg8bit\.png") for s in ("train", "val")}
    with open_archive(paths["labels"]) as archive:
        masks = {s: _by_tail(archive, rf"gtFine/{s}/[^/]+/([^/]+)_gtFine_labelIds\.png") for s in ("train", "val")}
    for key, members in (("images", images), ("labels", masks)):
        _check_ids({*members["train"], *members["val"]}, paths[key])
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
