"""Upstream archives -> images, train-id masks and id lists in one layout for every data set.

<target>/images/<id><suffix>   upstream's bytes, decoded once to prove them complete
<target>/masks/<id>.png        (H, W) uint8: 0 to n_classes - 1, or the ignore label
<target>/lists/{train,train_aug,val}.txt
<target>/checksums.sha256      of all those files, as sha256sum writes and checks them
<target>/manifest.json         written last: where it stands, everything else is complete
"""

import io
import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

from u2pl.data.archives import ArchiveReader, open_archive
from u2pl.data.fetch import fetched_sha256
from u2pl.data.images import UInt8, check_labels, check_size, decode, decode_mask, encode_mask
from u2pl.data.lists import parse_ids, sort_ids, write_ids
from u2pl.errors import UserError
from u2pl.experiments.schema import Dataset
from u2pl.files import atomic_path, locked, read_json, sha256, write_json

_SUFFIX = {"pascal": ".jpg", "cityscapes": ".png"}
CHECKSUMS = "checksums.sha256"
_FORMAT = 1  # of the prepared folder; part of the resume key, so a change of it converts anew


@dataclass
class _Plan:
    """What to read: (archive key, member name) -> image id, once for images and once for masks."""

    lists: dict[str, list[str]]
    images: dict[tuple[str, str], str] = field(default_factory=dict)
    masks: dict[tuple[str, str], str] = field(default_factory=dict)


def prepare(dataset: Dataset, archives: Path, target: Path, workers: int) -> None:
    """Convert the archives of `dataset` in the folder `archives` into the folder `target`, with `workers` processes.

    Resumes: a file with its final name is complete and is not written again, unless the archives changed. One process
    at a time. Raises UserError for a missing, unsafe or damaged archive, an image that does not decode, a mask of
    another size, an unknown label, lists whose lengths differ from `dataset.counts`, and a full disk.
    """
    with _alone(target, workers):
        _prepare(dataset, archives, target, max(1, workers), "manifest.json")


@contextmanager
def _alone(target: Path, workers: int) -> Iterator[None]:
    with locked(target):
        try:
            yield
        except BrokenProcessPool as error:
            raise UserError(target, "a worker that was killed", f"memory for {workers} of them") from error
        except OSError as error:
            raise UserError(error.filename or target, error.strerror, "a file that can be written") from error


def _prepare(dataset: Dataset, archives: Path, target: Path, workers: int, manifest: str) -> None:
    paths = {key: archives / archive.file for key, archive in dataset.archives.items()}
    expected_keys = {"pascal": {"voc", "sbd"}, "cityscapes": {"images", "labels"}}[dataset.kind]
    if set(paths) != expected_keys:
        raise UserError(f"archives of {dataset.kind}", sorted(paths), sorted(expected_keys))
    (target / manifest).unlink(missing_ok=True)
    hashes = {path.name: fetched_sha256(path) for path in paths.values()}
    _start(
        target,
        {
            "format": _FORMAT,
            "kind": dataset.kind,
            "archives": hashes,
            "classes": len(dataset.classes),
            "ignore_label": dataset.ignore_label,
        },
    )
    with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
        plan = _plan(dataset, paths)
        _check_counts(dataset, plan, target)
        _convert(dataset, paths, plan, target, pool)
        for name, ids in plan.lists.items():
            write_ids(target / "lists" / f"{name}.txt", ids)
        files, content = _content_hash(target, _SUFFIX[dataset.kind], plan, pool)
    write_json(
        target / manifest,
        {
            "dataset": dataset.kind,
            "suffix": _SUFFIX[dataset.kind],
            "classes": [label.name for label in dataset.classes],
            "ignore_label": dataset.ignore_label,
            "counts": {name: len(ids) for name, ids in plan.lists.items()},
            "files": files,
            "content_sha256": content,
            "archives": hashes,
            "format": _FORMAT,
        },
    )


def restore(dataset: Dataset, archives: Path, target: Path, workers: int) -> None:
    """Convert the archives again if the manifest in `target` stands there without the files it speaks of.

    Only the manifest is versioned. It is left as it is, so that nothing that depends on it is made again. Raises
    UserError if the archives are missing or give other files.
    """
    manifest, restored = target / "manifest.json", target / "restored.json"
    if not manifest.is_file():
        return
    recorded = read_json(manifest)
    if _present(target, recorded):
        return
    with _alone(target, workers):
        if _present(target, recorded):  # by the process that had the lock
            return
        print(f"{target}: no files but the manifest; converting the archives again", flush=True)
        _prepare(dataset, archives, target, max(1, workers), restored.name)
        found = read_json(restored)
        restored.unlink()
    if found != recorded:
        differs = next(name for name in found if found[name] != recorded.get(name))
        raise UserError(
            f"{archives} as prepared: {differs}", found[differs], f"{recorded.get(differs)}, as {manifest} says"
        )


def _present(target: Path, recorded: dict[str, Any]) -> bool:
    """Whether the files that a manifest records stand in the folder, all of them and of the same archives."""
    try:
        same = read_json(target / "sources.json")["archives"] == recorded["archives"]
    except UserError:
        return False
    folders = ("images", "masks", "lists")
    return same and sum(len(list((target / name).glob("[!.]*"))) for name in folders) == recorded["files"]


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start(target: Path, key: dict[str, Any]) -> None:
    """Keep the finished files of an interrupted conversion only if it had the same inputs, and no unfinished one."""
    for unfinished in target.rglob(".*.*"):  # the names of atomic_path
        unfinished.unlink()
    key_file = target / "sources.json"
    try:
        same = read_json(key_file) == key
    except UserError:
        same = False
    if same:
        return
    key_file.unlink(missing_ok=True)
    for name in ("images", "masks", "lists"):
        shutil.rmtree(target / name, ignore_errors=True)
    write_json(key_file, key)


def _plan(dataset: Dataset, paths: dict[str, Path]) -> _Plan:
    return _plan_pascal(paths) if dataset.kind == "pascal" else _plan_cityscapes(paths)


def _by_tail(reader: ArchiveReader, pattern: str) -> dict[str, str]:
    """Member names whose end matches `pattern`, by its first group. Archives differ in their leading folders."""
    found: dict[str, str] = {}
    for name in reader.names:
        if match := re.search(rf"(?:^|/){pattern}$", name):
            if match[1] in found:
                raise UserError(reader.path, f"{found[match[1]]!r} and {name!r}", "one of them")
            found[match[1]] = name
    return found


def _plan_pascal(paths: dict[str, Path]) -> _Plan:
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
        sbd_images, sbd_masks = _by_tail(sbd, r"img/([^/]+)\.jpg"), _by_tail(sbd, r"cls/([^/]+)\.mat")
        lists = _by_tail(sbd, r"dataset/(train|val)\.txt")
        listed = [i for member, text in sbd.read(lists.values()) for i in _decode_ids(text, sbd.path, member)]
    if both := set(ids["train"]) & set(ids["val"]):
        raise UserError(paths["voc"], f"{min(both)} in train and val", "disjoint lists")
    # SBD's two lists partition its images; a repacked archive without them offers every mask it has.
    extra = (set(listed) or set(sbd_masks)) - set(ids["train"]) - set(ids["val"])
    lists_out = {
        "train": sort_ids(ids["train"]),
        "train_aug": sort_ids({*ids["train"], *extra}),
        "val": sort_ids(ids["val"]),
    }
    plan = _Plan(lists_out)
    for image_id in (*ids["train"], *ids["val"]):
        _add(plan, image_id, "voc", paths, voc_images, voc_masks)
    for image_id in sort_ids(extra):
        _add(plan, image_id, "sbd", paths, sbd_images, sbd_masks)
    return plan


def _add(
    plan: _Plan, image_id: str, key: str, paths: dict[str, Path], images: dict[str, str], masks: dict[str, str]
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


def _plan_cityscapes(paths: dict[str, Path]) -> _Plan:
    """The fine annotations' train and val; the test split has no public labels and is left out."""
    with open_archive(paths["images"]) as archive:
        images = {s: _by_tail(archive, rf"leftImg8bit/{s}/[^/]+/([^/]+)_leftImg8bit\.png") for s in ("train", "val")}
    with open_archive(paths["labels"]) as archive:
        masks = {s: _by_tail(archive, rf"gtFine/{s}/[^/]+/([^/]+)_gtFine_labelIds\.png") for s in ("train", "val")}
    plan = _Plan({s: sort_ids(parse_ids("\n".join(images[s]), paths["images"])) for s in ("train", "val")})
    for split in ("train", "val"):
        for key, present, needed in (("labels", masks, images), ("images", images, masks)):
            if missing := set(needed[split]) - set(present[split]):
                raise UserError(paths[key], f"no {split} file of {min(missing)}", "an image and its labelIds")
        plan.images.update({("images", name): image_id for image_id, name in images[split].items()})
        plan.masks.update({("labels", name): image_id for image_id, name in masks[split].items()})
    if both := set(images["train"]) & set(images["val"]):
        raise UserError(paths["images"], f"{min(both)} in train and val", "ids that are unique across splits")
    return plan


def _check_counts(dataset: Dataset, plan: _Plan, target: Path) -> None:
    for name, expected in dataset.counts.items():
        if name not in plan.lists:
            raise UserError(f"counts of {dataset.kind}", name, " or ".join(plan.lists))
        if len(plan.lists[name]) != expected:
            raise UserError(target / "lists" / f"{name}.txt", f"{len(plan.lists[name])} images", expected)


def _convert(dataset: Dataset, paths: dict[str, Path], plan: _Plan, target: Path, pool: ProcessPoolExecutor) -> None:
    """Images first, because a mask is checked against its image's size."""
    suffix = _SUFFIX[dataset.kind]
    for wanted, folder, ending in ((plan.images, "images", suffix), (plan.masks, "masks", ".png")):
        todo: dict[str, dict[str, str]] = {}
        for (key, member), image_id in wanted.items():
            if not (target / folder / f"{image_id}{ending}").is_file():
                todo.setdefault(key, {})[member] = image_id
        for key, members in todo.items():
            with open_archive(paths[key]) as archive:
                jobs = (
                    _Job(f"{paths[key]}:{name}", content, target / folder / f"{members[name]}{ending}",
                         target / "images" / f"{members[name]}{suffix}", len(dataset.classes), dataset.ignore_label)
                    for name, content in archive.read(members)
                )  # fmt: skip
                _run(pool, _write_image if folder == "images" else _MASK_WRITERS[key], jobs)


@dataclass(frozen=True)
class _Job:
    where: str
    content: bytes
    output: Path
    image: Path
    n_classes: int
    ignore_label: int


def _run(pool: ProcessPoolExecutor, function: Callable[[_Job], None], jobs: Iterator[_Job], ahead: int = 64) -> None:
    """Run the jobs in the pool, never more than `ahead` of them in memory."""
    running: set[Future[None]] = set()

    def settle(done: Iterable[Future[None]]) -> None:
        for future in done:
            future.result()

    try:
        for job in jobs:
            running.add(pool.submit(function, job))
            if len(running) >= ahead:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                settle(done)
        settle(running)
    finally:
        for future in running:
            future.cancel()


def _write_image(job: _Job) -> None:
    decode(job.content, job.where)
    with atomic_path(job.output) as temporary:
        temporary.write_bytes(job.content)


def _write_voc_mask(job: _Job) -> None:
    _write_mask(job, decode_mask(job.content, job.where))


def _write_sbd_mask(job: _Job) -> None:
    try:
        content: Any = io.BytesIO(job.content)  # the stubs know paths only
        labels = scipy.io.loadmat(content, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # scipy raises whatever the damaged bytes lead to
        raise UserError(job.where, f"{type(error).__name__} {error}", "GTcls.Segmentation of SBD") from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise UserError(job.where, f"Segmentation of shape {np.shape(labels)}", "an (H, W) array of labels")
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise UserError(job.where, f"labels {labels.min()} to {labels.max()}", f"0 to {job.n_classes - 1}")
    _write_mask(job, labels.astype(np.uint8))


def _write_cityscapes_mask(job: _Job) -> None:
    table = train_id_table(job.ignore_label)
    ids = decode_mask(job.content, job.where)
    labels = table[ids]
    if (unknown := labels < 0).any():
        raise UserError(job.where, f"label id {ids[unknown][0]}", "the ids of cityscapesscripts.helpers.labels")
    _write_mask(job, labels.astype(np.uint8))


_MASK_WRITERS = {"voc": _write_voc_mask, "sbd": _write_sbd_mask, "labels": _write_cityscapes_mask}


def train_id_table(ignore_label: int) -> np.ndarray:
    """(256,) int16: Cityscapes label id -> train id, `ignore_label` for ids outside evaluation, -1 for unknown ids."""
    from cityscapesscripts.helpers.labels import labels as known

    table = np.full(256, -1, np.int16)
    for label in known:
        if label.id >= 0:
            table[label.id] = ignore_label if label.trainId in (-1, 255) else label.trainId
    return table


def _write_mask(job: _Job, labels: UInt8) -> None:
    with Image.open(job.image) as image:
        width, height = image.size
    check_size(labels, (height, width), job.where)
    check_labels(labels, job.n_classes, job.ignore_label, job.where)
    with atomic_path(job.output) as temporary:
        temporary.write_bytes(encode_mask(labels))


def _content_hash(target: Path, suffix: str, plan: _Plan, pool: ProcessPoolExecutor) -> tuple[int, str]:
    """Write the names and hashes of all files to checksums.sha256; their number, and the SHA-256 of what is written."""
    names = [f"lists/{name}.txt" for name in plan.lists]
    names += [f"images/{image_id}{suffix}" for image_id in plan.images.values()]
    names += [f"masks/{image_id}.png" for image_id in plan.masks.values()]
    names = sort_ids(names)
    digests = pool.map(sha256, [target / name for name in names], chunksize=64)
    with atomic_path(target / CHECKSUMS) as temporary:
        lines = [f"{digest}  {name}\n" for name, digest in zip(names, digests, strict=True)]
        temporary.write_bytes("".join(lines).encode())
    return len(names), sha256(target / CHECKSUMS)
