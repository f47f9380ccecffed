"""What split lists hold: sizes, overlaps, finely annotated images, and how often each class occurs.

The finely annotated images are those of the prepared list `train`: all of Cityscapes, but of Pascal's train_aug only
VOC's own 1,464, the rest having SBD's coarser outlines. Which of them are labelled decides much of a result.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from u2pl.data.lists import read_ids
from u2pl.data.splits.draw import check
from u2pl.data.splits.masks import Counts, pixel_counts
from u2pl.errors import UserError
from u2pl.experiments.records import PreparedManifest, SplitManifest, read
from u2pl.files import atomic_path
from u2pl.folders import Data, Prepared, Split


@dataclass(frozen=True)
class Audit:
    """One split. Class shares are of the labelled images, and empty if no masks were read."""

    protocol: str
    source: str  # of published lists, or drawn/seed<k>
    labelled: int
    unlabelled: int
    fine: int  # labelled images that are finely annotated
    missing: int | None  # classes that only the other candidates show; None: the split does not record it
    overlap: dict[str, int]  # source -> labelled images that are also labelled in its split of the same size
    pixels: dict[str, float]  # class -> share of the pixels that have a class
    images: dict[str, float]  # class -> share of the images that show it

    def rows(self) -> Iterator[tuple[str, str, float]]:
        """(quantity, what of, value) of everything known."""
        yield "images", "labelled", self.labelled
        yield "images", "unlabelled", self.unlabelled
        yield "images", "finely annotated", self.fine
        yield "share", "finely annotated", self.fine / self.labelled
        if self.missing is not None:
            yield "classes", "without a labelled image", self.missing
        yield from (("overlap", name, value) for name, value in self.overlap.items())
        yield from (("pixel share", name, value) for name, value in self.pixels.items())
        yield from (("image share", name, value) for name, value in self.images.items())


def audit_splits(
    data: Path, protocol: str | None = None, sources: Sequence[str] | None = None, *, classes: bool = True
) -> list[Audit]:
    """Audit the splits made below `data`/splits, of one protocol and of some sources (drawn: of all seeds) or of all.

    With `classes` the masks of the labelled images are read, unless the prepared data have no masks at all.
    Raises UserError if there is no such split, or one that `u2pl.data.splits.draw.check` refuses.
    """
    found: dict[tuple[str, int], dict[str, Path]] = {}
    for manifest in Data(data).split_manifests():
        name, source, labelled, *seed = manifest.parent.relative_to(Data(data).splits).parts
        if protocol in (None, name) and labelled.isdigit():
            found.setdefault((name, int(labelled)), {})["/".join([source, *seed])] = manifest.parent
    audits = []
    readers: dict[Path, Callable[[str], Counts]] = {}
    for (name, _), folders in sorted(found.items()):
        # Overlaps are with every source, also with those that are not asked for.
        chosen = {source: set(read_ids(Split(folder).list("labeled"))) for source, folder in sorted(folders.items())}
        for source, ids in chosen.items():
            if sources and source.partition("/")[0] not in sources:
                continue
            made = read(SplitManifest, Split(folders[source]).manifest)
            prepared = data / made.dataset
            check(folders[source], prepared)
            pixels: dict[str, float] = {}
            images: dict[str, float] = {}
            if classes and Prepared(prepared).masks.is_dir():
                pixels, images = _frequencies(ids, prepared, readers.setdefault(prepared, pixel_counts(prepared)))
            audits.append(
                Audit(
                    protocol=name,
                    source=source,
                    labelled=len(ids),
                    unlabelled=len(read_ids(Split(folders[source]).list("unlabeled"))),
                    fine=len(ids & set(read_ids(Prepared(prepared).list("train")))),
                    missing=None if made.missing is None else len(made.missing),
                    overlap={other: len(ids & theirs) for other, theirs in chosen.items() if other != source},
                    pixels=pixels,
                    images=images,
                )
            )
    if not audits:
        wanted = " ".join(["no split", *filter(None, [protocol, *(sources or ())])])
        raise UserError(Data(data).splits, wanted, "splits (the workflow or `u2pl data split` makes them)")
    return audits


def _frequencies(
    ids: set[str], prepared: Path, count: Callable[[str], Counts]
) -> tuple[dict[str, float], dict[str, float]]:
    """Class -> its share of the labelled pixels; class -> the share of images that show it."""
    names = read(PreparedManifest, Prepared(prepared).manifest).classes
    counts = np.stack([count(image_id) for image_id in sorted(ids)])  # (images, classes)
    pixels = counts.sum(0) / max(1, counts.sum())
    images = (counts > 0).mean(0)
    return dict(zip(names, pixels.tolist(), strict=True)), dict(zip(names, images.tolist(), strict=True))


def write_csv(path: Path, audits: Sequence[Audit]) -> None:
    """One number a line: protocol, source, labelled, quantity, of, value."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["protocol", "source", "labelled", "quantity", "of", "value"])
        for audit in audits:
            for quantity, of, value in audit.rows():
                writer.writerow([audit.protocol, audit.source, audit.labelled, quantity, of, f"{value:.9g}"])


def tables(audits: Sequence[Audit]) -> list[Table]:
    """One table of sizes and overlaps with published lists, and one of class frequencies per protocol and size."""
    others = sorted({name for audit in audits for name in audit.overlap if "/" not in name})
    sizes = Table(
        title="Labelled images (fine: finely annotated; missing: classes without one; in: labelled there too)",
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("protocol", "source"):
        sizes.add_column(heading, no_wrap=True)
    for heading in ("labelled", "un-\nlabelled", "fine", "%", "miss-\ning", *(f"in\n{name}" for name in others)):
        sizes.add_column(heading, justify="right", no_wrap=True)
    for audit in audits:
        shared = [str(audit.overlap.get(name, "")) for name in others]
        numbers = [str(number) for number in (audit.labelled, audit.unlabelled, audit.fine)]
        fine, missing = f"{100 * audit.fine / audit.labelled:.1f}", "" if audit.missing is None else str(audit.missing)
        sizes.add_row(audit.protocol, audit.source, *numbers, fine, missing, *shared)
    result = [sizes]
    groups: dict[tuple[str, int], list[Audit]] = {}
    for audit in audits:
        if audit.pixels:
            groups.setdefault((audit.protocol, audit.labelled), []).append(audit)
    for (name, labelled), group in groups.items():
        title = f"{name}, {labelled} labelled: % of pixels and of images"
        table = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column("class", no_wrap=True)
        for audit in group:
            source = audit.source.replace("/", "\n")
            table.add_column(f"{source}\npixels", justify="right")
            table.add_column(f"{source}\nimages", justify="right")
        for label in group[0].pixels:
            values = [(f"{100 * audit.pixels[label]:.2f}", f"{100 * audit.images[label]:.1f}") for audit in group]
            table.add_row(label, *(text for pair in values for text in pair))
        result.append(table)
    return result
