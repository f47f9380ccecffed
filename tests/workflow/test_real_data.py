"""The main job on a few real files of the three data sets, by a scale file alone.

U2PL_REAL_DATA names a folder with VOCdevkit, benchmark_RELEASE and cityscapes in upstream's layouts.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("U2PL_REAL_DATA", ROOT.parent / "shared/data/real"))
SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (REAL / "VOCdevkit").is_dir(), reason="no real files of the data sets here (U2PL_REAL_DATA)"
    ),
]

NETWORK = {"encoder": "resnet18", "width": 16, "channels": 32, "representation": 32}
SMALL = {
    "network": NETWORK | {"weights": {"7x7": None, "deep": None}},
    "lr": 0.01, "epochs": 2, "batch": 2, "crop": 129, "validate_every": 2,
    "workers": 0, "gpus": 0, "threads": 1, "mem_mb": 4000,
}  # fmt: skip


def pack(folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(folder / "VOCtrainval_11-May-2012.tar", "w") as tar:
        tar.add(REAL / "VOCdevkit", "VOCdevkit")
    with tarfile.open(folder / "benchmark.tgz", "w:gz") as tar:
        tar.add(REAL / "benchmark_RELEASE", "benchmark_RELEASE")
    for name, archive in (("leftImg8bit", "leftImg8bit_trainvaltest.zip"), ("gtFine", "gtFine_trainvaltest.zip")):
        with zipfile.ZipFile(folder / archive, "w") as target:
            # All files here are of train; the last one stands in for val.
            for path in sorted((REAL / "cityscapes" / name).rglob("*.png")):
                part = "val" if "aachen_000002" in path.name else "train"
                target.write(path, f"{name}/{part}/aachen/{path.name}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    shutil.copytree(ROOT / "params", folder / "params")
    shutil.copytree(ROOT / "workflow", folder / "workflow")
    shutil.copy(ROOT / "Snakefile", folder)
    pack(folder / "mirror")
    voc = REAL / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    train, val = (len((voc / f"{name}.txt").read_text().split()) for name in ("train", "val"))
    ids = {path.stem for path in (REAL / "benchmark_RELEASE/dataset/cls").glob("*.mat")}
    listed = {i for name in ("train", "val") for i in (voc / f"{name}.txt").read_text().split()}
    mirror = f"file://{folder}/mirror"
    scale = {
        "title": "a few real images", "synthetic": False, "seeds": [0],
        "datasets": {
            "pascal": {
                "archives": {"voc": {"url": f"{mirror}/VOCtrainval_11-May-2012.tar", "md5": None},
                             "sbd": {"url": f"{mirror}/benchmark.tgz", "md5": None}},
                "counts": {"train": train, "train_aug": train + len(ids - listed), "val": val},
            },
            "cityscapes": {
                "archives": {"images": {"url": f"{mirror}/leftImg8bit_trainvaltest.zip", "md5": None},
                             "labels": {"url": f"{mirror}/gtFine_trainvaltest.zip", "md5": None}},
                "counts": {"train": 2, "val": 1},
            },
        },
        "protocols": {"pascal_classic": {"fractions": {"1/2": train // 2}}, "cityscapes": {"fractions": {"1/2": 1}}},
        "recipes": {"pascal": SMALL, "cityscapes": SMALL},
        "fidelity": {name: {"all": {"split_source": "drawn"}} for name in ("paper", "released")},
    }  # fmt: skip
    (folder / "params/scales/real.yaml").write_text(yaml.safe_dump(scale))
    shutil.rmtree(folder / "params/tables")
    (folder / "params/tables").mkdir()
    columns = [{"protocol": name, "fraction": "1/2"} for name in ("pascal_classic", "cityscapes")]
    rows = [{"title": name, "method": name, "paper": [None, None]} for name in ("suponly", "u2pl")]
    table = {"caption": "A few real images.", "columns": columns, "rows": rows}
    (folder / "params/tables/real.yaml").write_text(yaml.safe_dump(table))
    (folder / "params/figures.yaml").write_text("{}\n")
    done = subprocess.run(
        [SNAKEMAKE, "--cores", "2", "--config", "scale=real"], cwd=folder, capture_output=True, text=True, timeout=900
    )
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("logs/real/**/*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + logs
    return folder


def test_every_cell_has_a_number(finished):
    print((finished / "results/real/tables/real.md").read_text())
    runs = sorted((finished / "results/real/runs").iterdir())
    assert len(runs) == 4
    for run in runs:
        evaluation = json.loads((run / "evaluation.json").read_text())
        assert 0 <= evaluation["last"]["miou"] <= 100


def test_full_resolution_and_centre_crop_count_every_labelled_pixel(finished):
    """The confusion matrix holds as many pixels as the real masks have labelled ones in the evaluated area."""
    import numpy as np
    from cityscapesscripts.helpers.labels import id2label
    from PIL import Image

    mask = np.array(Image.open(next((REAL / "cityscapes/gtFine").rglob("aachen_000002*labelIds.png"))))
    labelled = sum(int((mask == i).sum()) for i in np.unique(mask) if 0 <= id2label[int(i)].trainId < 255)
    run = next((finished / "results/real/runs").glob("cityscapes-*-suponly-*"))
    assert np.sum(json.loads((run / "evaluation.json").read_text())["last"]["confusion"]) == labelled

    val = (REAL / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
    # The default counts what a centre crop of 513 adds to a smaller image as background, as the released code does.
    masks = [np.array(Image.open(REAL / f"VOCdevkit/VOC2012/SegmentationClass/{i}.png")) for i in val]
    assert all(max(m.shape) <= 513 for m in masks)
    run = next((finished / "results/real/runs").glob("pascal_classic-*-suponly-*"))
    found = np.sum(json.loads((run / "evaluation.json").read_text())["last"]["confusion"])
    assert found == sum(513 * 513 - int((m == 255).sum()) for m in masks)
