"""Split lists in the formats and under the paths of other repositories, drawn over synthetic prepared data.

They let a synthetic scale run what the real one runs: fetching, parsing, checking. Like the published ones, u2pl's
labelled lists hold the finely annotated images before any other, and cps's are uniform.
"""

import random
from collections.abc import Mapping
from pathlib import Path

from u2pl.data.lists import read_ids, sort_ids
from u2pl.errors import UserError
from u2pl.experiments.schema import Protocol, PublishedList
from u2pl.files import atomic_path
from u2pl.folders import Prepared


def mirror(
    source: str,
    name: str,
    lists: Mapping[str, PublishedList],
    protocol: Protocol,
    kind: str,
    *,
    prepared: Path,
    target: Path,
) -> None:
    """Write the `lists` (by fraction) of the protocol `name` below `target`, over the ids of the folder `prepared`.

    Equal arguments give equal bytes. Raises UserError if a fraction is unknown or larger than the candidates.
    """

    def ids(which: str) -> list[str]:
        return sort_ids(read_ids(Prepared(prepared).list(which)))

    candidates, universe, fine = ids(protocol.candidates), ids(protocol.universe), set(ids("train"))
    for fraction, files in lists.items():
        if fraction not in protocol.fractions:
            raise UserError(f"params/splits.yaml: {source}.lists.{name}", fraction, list(protocol.fractions))
        labelled = protocol.fractions[fraction]
        if labelled > len(candidates):
            raise UserError(f"{name} {fraction}", f"{labelled} labelled images", f"at most {len(candidates)}")
        order = list(candidates)
        random.Random(f"{source}:{name}:{fraction}").shuffle(order)
        if source == "u2pl":
            order.sort(key=lambda image_id: image_id not in fine)  # stable: shuffled within both parts
        chosen = set(order[:labelled])
        _write(target / files.labelled, order[:labelled], source, kind)
        if files.unlabelled is not None:
            _write(target / files.unlabelled, [i for i in universe if i not in chosen], source, kind)


def _write(path: Path, ids: list[str], source: str, kind: str) -> None:
    lines = [_line(image_id, source, kind) for image_id in ids]
    end = "\n" if source == "cps" else ""  # most of u2pl's lists have no final newline
    with atomic_path(path) as temporary:
        temporary.write_bytes(("\n".join(lines) + end).encode())


def _line(image_id: str, source: str, kind: str) -> str:
    if kind != "cityscapes":
        return image_id
    if source == "cps":
        return f"/images/train/{image_id}.png\t/segmentation/train/{image_id}_gtFine.png"
    return f"leftImg8bit/train/{image_id.split('_')[0]}/{image_id}_leftImg8bit.png"
