"""One member of an archive -> one prepared file, many at a time in worker processes."""

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from u2pl.data.images import check_labels, check_size, decode, encode_mask
from u2pl.data.layouts import LAYOUTS
from u2pl.data.layouts.layout import ReadMask
from u2pl.data.sources.unpack import open_archive
from u2pl.errors import UserError
from u2pl.experiments.schema import Dataset
from u2pl.files import atomic_path


@dataclass(frozen=True)
class _Job:
    where: str
    content: bytes
    output: Path
    image: Path
    read: ReadMask | None  # of a mask; None: an image
    n_classes: int
    ignore_label: int


def convert(
    dataset: Dataset, paths: dict[str, Path], target: Path, wanted: dict[tuple[str, str], str], workers: int
) -> Iterator[tuple[str, str]]:
    """Make the files `wanted`, (archive key, member) -> name below the folder `target`; (name, SHA-256) of each.

    Masks need their images, which have to be there. Raises UserError for what is wrong in an archive or with the disk.
    """
    with ProcessPoolExecutor(max(1, workers), initializer=_end_with_parent) as pool:
        yield from _run(pool, _jobs(dataset, paths, target, wanted))


def _jobs(
    dataset: Dataset, paths: dict[str, Path], target: Path, wanted: dict[tuple[str, str], str]
) -> Iterator[tuple[str, _Job]]:
    """(name below the folder, job) of the wanted members, archive by archive."""
    layout = LAYOUTS[dataset.kind]
    for key, path in paths.items():
        members = {member: name for (of, member), name in wanted.items() if of == key}
        if not members:
            continue
        with open_archive(path) as archive:
            for member, content in archive.read(members):
                output = target / members[member]
                image = target / "images" / f"{output.stem}{layout.suffix}"
                read = None if output == image else layout.masks[key]
                job = _Job(f"{path}:{member}", content, output, image, read, len(dataset.classes), dataset.ignore_label)
                yield members[member], job


def _run(pool: ProcessPoolExecutor, jobs: Iterable[tuple[str, _Job]], ahead: int = 64) -> Iterator[tuple[str, str]]:
    """Run the jobs in the pool, never more than `ahead` of them in memory; (name, SHA-256) of each that is done."""
    running: dict[Future[str], str] = {}

    def settle(done: Iterable[Future[str]]) -> Iterator[tuple[str, str]]:
        for future in done:
            yield running.pop(future), future.result()

    try:
        for name, job in jobs:
            running[pool.submit(_convert, job)] = name
            if len(running) >= ahead:
                yield from settle(wait(running, return_when=FIRST_COMPLETED).done)
        yield from settle(list(running))
    finally:
        for future in running:
            future.cancel()


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write(path: Path, content: bytes) -> str:
    """Not through to the disk, which would take longer than the conversion: readers compare the checksum."""
    with atomic_path(path, durable=False) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _convert(job: _Job) -> str:
    if job.read is None:
        decode(job.content, job.where)
        return _write(job.output, job.content)
    labels = job.read(job.content, job.where, job.ignore_label)
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise UserError(job.where, f"labels {labels.min()} to {labels.max()}", f"0 to {job.n_classes - 1}")
    labels = labels.astype(np.uint8, copy=False)
    with Image.open(job.image, formats=("JPEG", "PNG")) as image:
        width, height = image.size
    check_size(labels, (height, width), job.where)
    check_labels(labels, job.n_classes, job.ignore_label, job.where)
    return _write(job.output, encode_mask(labels))
