"""What the masks of prepared images hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from u2pl.data.images import check_labels, decode_mask, read_bytes
from u2pl.experiments.records import PreparedManifest, read
from u2pl.folders import Prepared

Counts = NDArray[np.int64]


def pixel_counts(prepared: Path) -> Callable[[str], Counts]:
    """A function id -> (classes,) pixels per class, without the ignored ones; it reads each mask once.

    The function raises UserError for a mask that is missing or damaged, or has a label that is no class.
    """
    manifest = read(PreparedManifest, Prepared(prepared).manifest)
    n_classes, ignore = len(manifest.classes), manifest.ignore_label
    known: dict[str, Counts] = {}

    def count(image_id: str) -> Counts:
        if image_id not in known:
            path = Prepared(prepared).mask(image_id)
            labels = decode_mask(read_bytes(path), path)
            check_labels(labels, n_classes, ignore, path)
            known[image_id] = np.bincount(labels[labels != ignore], minlength=n_classes).astype(np.int64)
        return known[image_id]

    return count
