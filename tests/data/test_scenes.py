"""The cluttered scenes and the mistakes in their SBD labels."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from u2pl.data.synthetic.archives import synthesize
from u2pl.data.synthetic.scenes import SIMPLE, cluttered_scene, pascal_scene, simple_scene

SIZE = (64, 96)


def test_a_cluttered_scene_has_objects_and_is_the_same_again() -> None:
    for index in range(40):
        image, labels = cluttered_scene(3, index, SIZE)
        assert image.shape == (*SIZE, 3) and image.dtype == labels.dtype == np.uint8
        assert 0 in labels and 0 < labels.max() <= 20
        again = cluttered_scene(3, index, SIZE)
        assert np.array_equal(image, again[0]) and np.array_equal(labels, again[1])
    assert not np.array_equal(cluttered_scene(3, 0, SIZE)[0], cluttered_scene(4, 0, SIZE)[0])


def test_a_simple_scene_has_every_simple_class_in_few_images_and_is_the_same_again() -> None:
    scenes = [simple_scene(3, index, SIZE) for index in range(2 * len(SIMPLE))]
    for index, (image, labels) in enumerate(scenes):
        assert image.shape == (*SIZE, 3) and image.dtype == labels.dtype == np.uint8
        again = simple_scene(3, index, SIZE)
        assert np.array_equal(image, again[0]) and np.array_equal(labels, again[1])
    assert set(np.unique([labels for _, labels in scenes])) == {0, *SIMPLE}


def test_its_background_is_cluttered_where_the_plain_one_is_not() -> None:
    """Steps of brightness within the background, away from objects: clutter and occluders have edges there."""

    def edges(scene) -> float:  # type: ignore[no-untyped-def]
        shares = []
        for index in range(40):
            image, labels = scene(0, index, SIZE)
            grey = image.astype(float).mean(2)
            step = np.abs(grey[:, 8:] - grey[:, :-8])
            # all of the nine pixels between are background
            clear = np.lib.stride_tricks.sliding_window_view(labels == 0, 9, axis=1).all(-1)
            shares.append((step[clear] > 40).mean())
        return float(np.mean(shares))

    assert edges(cluttered_scene) > 5 * edges(pascal_scene)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[np.ndarray, np.ndarray]]:
    """VOC's and SBD's labels of the same images, of a cluttered set."""
    folder = tmp_path_factory.mktemp("cluttered")
    synthesize("pascal", folder, seed=0, train=150, extra=1, val=1, size=SIZE, cluttered=True)
    return list(both(folder))


def both(folder: Path):  # type: ignore[no-untyped-def]
    with tarfile.open(folder / "VOCtrainval_11-May-2012.tar") as voc, tarfile.open(folder / "benchmark.tgz") as sbd:
        coarse = {}
        for member in sbd:
            if "/dataset/cls/" in member.name:
                content = scipy.io.loadmat(io.BytesIO(sbd.extractfile(member).read()))  # type: ignore[union-attr]
                coarse[Path(member.name).stem] = content["GTcls"]["Segmentation"][0, 0]
        for member in voc:
            if "/SegmentationClass/" in member.name:
                fine = np.asarray(Image.open(io.BytesIO(voc.extractfile(member).read())))  # type: ignore[union-attr]
                yield fine, coarse[Path(member.name).stem]


def test_a_tenth_of_the_sbd_objects_is_forgotten_and_a_tenth_confused(annotations) -> None:  # type: ignore[no-untyped-def]
    """Of the large objects whose pair is otherwise absent, so that the label says what became of them."""
    fates = []
    for fine, coarse in annotations:
        present = set(np.unique(fine)) - {0, 255}
        for label in present:
            twin = label + 1 if label % 2 else label - 1
            where = fine == label
            if where.sum() < 150 or twin in present:
                continue
            found = np.bincount(coarse[where], minlength=21).argmax()
            fates.append({label: "kept", twin: "confused", 0: "forgotten"}.get(found, "covered"))
    shares = {fate: fates.count(fate) / len(fates) for fate in set(fates)}
    assert len(fates) > 250
    deviation = (0.1 * 0.9 / len(fates)) ** 0.5
    assert abs(shares["confused"] - 0.1) < 4 * deviation
    # small, thin objects can also be lost by the shift: a few more
    assert -4 * deviation < shares["forgotten"] - 0.1 < 4 * deviation + 0.03
    assert shares.get("covered", 0) < 0.02


def test_voc_labels_are_the_scene_s(annotations) -> None:  # type: ignore[no-untyped-def]
    """In order of the archive; only rims are added."""
    scenes = [cluttered_scene(0, index, SIZE)[1] for index in range(152)]
    for fine, _ in annotations[:20]:
        assert any(np.array_equal(np.where(fine == 255, labels, fine), labels) for labels in scenes)
