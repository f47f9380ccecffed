"""Labelled and unlabelled image lists of a protocol.

The draw is `random.Random` (Mersenne Twister, seeded by a string through SHA-512) over the byte-sorted candidates:

    independent fractions   Random(f"{seed}:{labelled}").sample(candidates, labelled)
    nested fractions        Random(f"{seed}").shuffle(candidates), then the first `labelled`
"""

import random
from pathlib import Path

from u2pl.data.lists import read_ids, sort_ids, write_ids
from u2pl.errors import UserError
from u2pl.experiments.schema import Protocol
from u2pl.files import read_json, sha256, write_json

_LISTS = ("labeled", "unlabeled", "val")


def draw(protocol: Protocol, labelled: int, prepared: Path, target: Path, seed: int) -> None:
    """Write labeled.txt, unlabeled.txt, val.txt and, last, manifest.json into the folder `target`.

    `labelled` images of the candidate list are drawn; the rest of the universe is unlabelled.
    Raises UserError if there are fewer candidates or the prepared data are incomplete.
    """
    content = read_json(prepared / "manifest.json")["content_sha256"]
    candidate_file = prepared / "lists" / f"{protocol.candidates}.txt"
    candidates, universe = sort_ids(read_ids(candidate_file)), read_ids(prepared / "lists" / f"{protocol.universe}.txt")
    if labelled > len(candidates):
        raise UserError(candidate_file, f"{len(candidates)} images", f"at least the {labelled} labelled ones")
    if protocol.nested:
        random.Random(f"{seed}").shuffle(candidates)
        chosen = candidates[:labelled]
    else:
        chosen = random.Random(f"{seed}:{labelled}").sample(candidates, labelled)
    manifest = target / "manifest.json"
    manifest.unlink(missing_ok=True)
    lists = {
        "labeled": sort_ids(chosen),
        "unlabeled": sort_ids(set(universe) - set(chosen)),
        "val": sort_ids(read_ids(prepared / "lists" / "val.txt")),
    }
    for name, ids in lists.items():
        write_ids(target / f"{name}.txt", ids)
    write_json(
        manifest,
        {
            "counts": {name: len(ids) for name, ids in lists.items()},
            "sha256": {name: sha256(target / f"{name}.txt") for name in lists},
            "prepared_content_sha256": content,
            "dataset": protocol.dataset,
            "candidates": protocol.candidates,
            "universe": protocol.universe,
            "nested": protocol.nested,
            "labelled": labelled,
            "seed": seed,
        },
    )
    check(target, prepared)


def check(folder: Path, prepared: Path) -> None:
    """Raise UserError unless the split in `folder` fits the prepared data.

    Refused: ids that are unknown, doubled, in the validation list, labelled and unlabelled at once; a universe or a
    validation list that is not complete; lists that differ from the manifest; data that changed since the draw.
    """
    manifest = read_json(folder / "manifest.json")
    lists = {name: set(read_ids(folder / f"{name}.txt")) for name in _LISTS}
    val = set(read_ids(prepared / "lists" / "val.txt"))
    candidates = set(read_ids(prepared / "lists" / f"{manifest['candidates']}.txt"))
    universe = set(read_ids(prepared / "lists" / f"{manifest['universe']}.txt"))
    for name, allowed in (("labeled", candidates), ("unlabeled", universe)):
        where = folder / f"{name}.txt"
        if leaked := lists[name] & val:
            raise UserError(where, f"validation image {min(leaked)}", "training images")
        if unknown := lists[name] - allowed:
            raise UserError(where, f"unknown image {min(unknown)}", f"images of {prepared / 'lists'}")
    if both := lists["labeled"] & lists["unlabeled"]:
        raise UserError(folder / "unlabeled.txt", f"{min(both)}, which is labelled", "disjoint lists")
    if missing := universe - lists["labeled"] - lists["unlabeled"]:
        raise UserError(folder / "unlabeled.txt", f"no {min(missing)}", "every training image in one of the lists")
    if different := lists["val"] ^ val:
        raise UserError(folder / "val.txt", f"a difference at {min(different)}", prepared / "lists" / "val.txt")
    for name in _LISTS:
        if (found := sha256(folder / f"{name}.txt")) != manifest["sha256"][name]:
            raise UserError(folder / f"{name}.txt", f"sha256 {found}", f"{manifest['sha256'][name]} of its manifest")
    content = read_json(prepared / "manifest.json")["content_sha256"]
    if content != manifest["prepared_content_sha256"]:
        raise UserError(
            prepared / "manifest.json", f"content {content}", f"{manifest['prepared_content_sha256']} of the split"
        )
