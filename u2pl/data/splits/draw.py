"""Labelled and unlabelled image lists of a protocol: drawn here, or published by others (u2pl.data.splits.published).

A draw belongs to one seed of the runs. It is `random.Random` (Mersenne Twister, seeded by a string through SHA-512)
over the byte-sorted candidates:

    independent fractions   Random(f"{protocol.seed}:{seed}:{labelled}").shuffle(candidates)
    nested fractions        Random(f"{protocol.seed}:{seed}").shuffle(candidates)

and the first `labelled` of that order are drawn. A stratified draw reorders first, so that few labelled images show all
classes: from the class that the fewest candidates show to the one that most show (then by number), it moves the first
image that shows the class to the front, behind those moved before, unless one of them shows it already.
"""

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from u2pl.data.lists import hash_ids, read_ids, sort_ids, write_ids
from u2pl.data.splits.masks import pixel_counts
from u2pl.errors import UserError
from u2pl.experiments import records
from u2pl.experiments.read import validate
from u2pl.experiments.records import PreparedManifest, SplitManifest
from u2pl.experiments.schema import Protocol
from u2pl.files import sha256
from u2pl.folders import Prepared, Split

LISTS: tuple[records.Lists, ...] = ("labeled", "unlabeled", "val")
Shown = Mapping[str, frozenset[int]]  # id -> the classes in its mask


def draw(
    protocol: Protocol, labelled: int, prepared: Path, target: Path, seed: int, *, stratified: bool = False
) -> None:
    """Write labeled.txt, unlabeled.txt, val.txt and, last, manifest.json into the folder `target`.

    `labelled` images of the candidate list are drawn; the rest of the universe is unlabelled. `stratified` reads the
    masks of all candidates.
    Raises UserError if there are fewer candidates, if the prepared data are incomplete, and if `check_classes` refuses
    a stratified draw.
    """
    candidate_file = Prepared(prepared).list(protocol.candidates)
    candidates, universe = sort_ids(read_ids(candidate_file)), read_ids(Prepared(prepared).list(protocol.universe))
    if labelled > len(candidates):
        raise UserError(candidate_file, f"{len(candidates)} images", f"at least the {labelled} labelled ones")
    origin = {"source": "drawn", "nested": protocol.nested, "protocol_seed": protocol.seed, "seed": seed}
    of_size = "" if protocol.nested else f":{labelled}"
    random.Random(f"{protocol.seed}:{seed}{of_size}").shuffle(candidates)
    if stratified:
        shown = _shown(candidates, prepared)
        candidates = classes_first(candidates, shown)
        names = records.read(PreparedManifest, Prepared(prepared).manifest).classes
        origin["missing"] = check_classes(candidates[:labelled], shown, names, Split(target).list("labeled"))
    chosen = candidates[:labelled]
    lists = {"labeled": chosen, "unlabeled": set(universe) - set(chosen)}
    write(protocol, lists, prepared, target, origin | {"stratified": stratified})
    check(target, prepared)


def _shown(ids: Sequence[str], prepared: Path) -> Shown:
    count = pixel_counts(prepared)
    return {image_id: frozenset(count(image_id).nonzero()[0].tolist()) for image_id in ids}


def classes_first(order: Sequence[str], shown: Shown) -> list[str]:
    """`order`, with an image of each class in front: rarest class first, none for a class that is already shown."""
    images = Counter(label for image_id in order for label in shown[image_id])
    front: list[str] = []
    for label in sorted(images, key=lambda label: (images[label], label)):
        if not any(label in shown[image_id] for image_id in front):
            front.append(next(image_id for image_id in order if label in shown[image_id]))
    taken = set(front)
    return front + [image_id for image_id in order if image_id not in taken]


def check_classes(labelled: Collection[str], shown: Shown, names: Sequence[str], where: Path) -> list[str]:
    """The names of the classes that the candidates, the keys of `shown`, show and no labelled image does.

    Raises UserError, naming the list `where` they are missing, if there are as many labelled images as classes: one of
    each would do. Fewer images, as in the smallest lists of the scale demo, may have to do without some classes.
    """
    classes = frozenset[int]().union(*shown.values())
    missing = sorted(classes - frozenset[int]().union(*(shown[image_id] for image_id in labelled)))
    if missing and len(labelled) >= len(classes):
        found = ", ".join(f"{label} ({names[label]})" for label in missing)
        expected = f"one of each of the {len(classes)} classes (more labelled images than {len(labelled)})"
        raise UserError(where, f"no image of class {found}", expected)
    return [names[label] for label in missing]


def write(
    protocol: Protocol, lists: Mapping[str, Collection[str]], prepared: Path, target: Path, origin: dict[str, Any]
) -> None:
    """Write the lists `labeled` and `unlabeled`, the prepared validation list and a manifest that holds `origin`.

    The manifest goes first and comes last, so that a folder with one is complete.
    """
    content = _content(prepared)
    complete = {**lists, "val": read_ids(Prepared(prepared).list("val"))}
    split = Split(target)
    split.manifest.unlink(missing_ok=True)
    for name, ids in complete.items():
        write_ids(split.list(name), ids)
    facts = {
        "counts": {name: len(ids) for name, ids in complete.items()},
        "sha256": {name: sha256(split.list(name)) for name in complete},
        "prepared_content_sha256": content,
        "dataset": protocol.dataset,
        "candidates": protocol.candidates,
        "universe": protocol.universe,
        "labelled": len(lists["labeled"]),
        **origin,
    }
    records.write(split.manifest, validate(SplitManifest, facts, split.manifest))


def check_lists(
    lists: Mapping[str, Collection[str]], where: Mapping[str, Path], prepared: Path, candidates: str, universe: str
) -> None:
    """Raise UserError, naming the file `where` a list comes from, unless the lists fit the prepared data.

    Refused: ids of `labeled` outside the prepared list `candidates`, of either list outside `universe` or in the
    validation list, ids in both lists, and a universe that the two do not exhaust.
    """
    val = set(read_ids(Prepared(prepared).list("val")))
    labelled, unlabelled = set(lists["labeled"]), set(lists["unlabeled"])
    for name, ids, known in (("labeled", labelled, candidates), ("unlabeled", unlabelled, universe)):
        if leaked := ids & val:
            raise UserError(where[name], f"validation image {min(leaked)}", "training images")
        file = Prepared(prepared).list(known)
        if unknown := ids - set(read_ids(file)):
            raise UserError(where[name], f"unknown image {min(unknown)}", f"images of {file}")
    if both := labelled & unlabelled:
        raise UserError(where["unlabeled"], f"{min(both)}, which is labelled", "disjoint lists")
    if missing := set(read_ids(Prepared(prepared).list(universe))) - labelled - unlabelled:
        raise UserError(where["unlabeled"], f"no {min(missing)}", "every training image in one of the lists")


def check(folder: Path, prepared: Path) -> None:
    """Raise UserError unless the split in `folder` fits the prepared data.

    Refused: ids that are unknown, doubled, in the validation list, labelled and unlabelled at once; a universe or a
    validation list that is not complete; lists that differ from the manifest or from the published ones it names; data
    that changed since the split was made.
    """
    split = Split(folder)
    manifest = records.read(SplitManifest, split.manifest)
    where: dict[str, Path] = {name: split.list(name) for name in LISTS}
    lists: dict[str, list[str]] = {name: read_ids(path) for name, path in where.items()}
    check_lists(lists, where, prepared, manifest.candidates, manifest.universe)
    val = Prepared(prepared).list("val")
    if different := set(lists["val"]) ^ set(read_ids(val)):
        raise UserError(where["val"], f"a difference at {min(different)}", val)
    for name in LISTS:
        if (found := sha256(where[name])) != (expected := manifest.sha256.get(name)):
            raise UserError(where[name], f"sha256 {found}", f"{expected} of its manifest")
    for name, published in manifest.files.items():
        if published is not None and (found := hash_ids(lists[name])) != published.sha256_ids:
            raise UserError(where[name], f"sha256 {found} of its ids", f"{published.sha256_ids} as published")
    content = _content(prepared)
    if content != manifest.prepared_content_sha256:
        expected = f"{manifest.prepared_content_sha256} of the split"
        raise UserError(Prepared(prepared).manifest, f"content {content}", expected)


def _content(prepared: Path) -> str:
    return records.read(PreparedManifest, Prepared(prepared).manifest).content_sha256
