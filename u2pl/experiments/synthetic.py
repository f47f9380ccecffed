"""What follows from `synthetic` in a scale's file: where archives and lists lie, how many images, and whose lists."""

import math
from pathlib import Path
from typing import Any

from u2pl.experiments.read import validate
from u2pl.experiments.schema import Dataset, Preset, PublishedSource, Scale, Synthetic
from u2pl.folders import Data, data_of

MB_PER_PIXEL = 4e-6  # of an archive, and of the prepared images and masks


def drawn_dataset(scale: str, params: Scale, name: str, base: Dataset, where: Path) -> dict[str, Any]:
    """Addresses, counts and disk space of a data set that the scale draws; nothing for any other.

    `base` is that of datasets.yaml. Raises UserError, blaming the scale's file `where`, if `synthetic` is not one.
    """
    own = params.datasets.get(name, {}).get("synthetic")
    if not own:
        return {}
    drawn = validate(Synthetic, own, where, ("datasets", name, "synthetic"))
    upstream = data_of(scale).upstream
    archives: dict[str, dict[str, Any]] = {
        key: {"url": f"file:{upstream / archive.file}", "mirrors": [], "md5": None, "sha256": None}
        for key, archive in base.archives.items()
    }
    counts = {"train": drawn.train, "train_aug": drawn.train + drawn.extra, "val": drawn.val}
    size = math.ceil((drawn.train + drawn.extra + drawn.val) * math.prod(drawn.size) * MB_PER_PIXEL)
    return {
        "archives": archives,
        "counts": {key: value for key, value in counts.items() if key in base.counts},
        "disk_mb": {"archives": size, "prepared": size},
    }


def drawn_lists(scale: str, params: Scale, source: str, _base: PublishedSource, _where: Path) -> dict[str, Any]:
    """Where the mirror of a published source lies that a synthetic scale draws, with upstream's paths and formats."""
    if not params.synthetic:
        return {}
    return {"url": f"file:{Data(data_of(scale).upstream).lists(source)}/", "sha256": None}


def drawn_preset(_scale: str, params: Scale, _name: str, _base: Preset, _where: Path) -> dict[str, Any]:
    """Every preset of a synthetic scale draws its lists: nobody has published any of its images."""
    return {"all": {"split_source": "drawn"}} if params.synthetic else {}
