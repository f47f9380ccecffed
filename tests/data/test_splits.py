"""Draws: the documented one, uniform or by class, and what `check` refuses."""

import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import PREPARED
from PIL import Image

from u2pl.cli.main import app
from u2pl.data.lists import write_ids
from u2pl.data.prepare import prepare
from u2pl.data.splits.draw import check, check_classes, classes_first, draw
from u2pl.data.synthetic.archives import synthesize
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.schema import Protocol
from u2pl.files import read_json, sha256, write_json


def protocol(candidates: str = "train_aug", nested: bool = False, seed: int = 0) -> Protocol:
    return Protocol(
        dataset="pascal", candidates=candidates, universe="train_aug", fractions={"full": 10}, nested=nested, seed=seed
    )  # type: ignore[arg-type]


def ids(path: Path) -> list[str]:
    return path.read_text().split()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labelled=st.integers(1, 10), seed=st.integers(0, 1000), nested=st.booleans(), stratified=st.booleans())
def test_a_draw_partitions_the_universe(
    labelled: int, seed: int, nested: bool, stratified: bool, pascal: Path, tmp_path: Path
) -> None:
    draw(protocol(nested=nested), labelled, pascal, tmp_path, seed, stratified=stratified)
    labeled, unlabeled = ids(tmp_path / "labeled.txt"), ids(tmp_path / "unlabeled.txt")
    assert len(set(labeled)) == labelled
    assert sorted(labeled + unlabeled) == ids(pascal / "lists" / "train_aug.txt")
    assert labeled == sorted(labeled) and unlabeled == sorted(unlabeled)
    assert ids(tmp_path / "val.txt") == ids(pascal / "lists" / "val.txt")


def test_candidates_bound_the_labelled_images(pascal: Path, tmp_path: Path) -> None:
    draw(protocol("train"), 6, pascal, tmp_path, 0)
    assert ids(tmp_path / "labeled.txt") == ids(pascal / "lists" / "train.txt")
    with pytest.raises(UserError, match="found 6 images, expected at least the 7"):
        draw(protocol("train"), 7, pascal, tmp_path, 0)


def test_draws_are_fixed_and_differ_by_seed_and_size(pascal: Path, tmp_path: Path) -> None:
    def labeled(n: int, seed: int, nested: bool, folder: str) -> list[str]:
        draw(protocol(nested=nested), n, pascal, tmp_path / folder, seed)
        return ids(tmp_path / folder / "labeled.txt")

    assert labeled(4, 0, False, "a") == labeled(4, 0, False, "b")
    assert (tmp_path / "a" / "manifest.json").read_bytes() == (tmp_path / "b" / "manifest.json").read_bytes()
    assert len({tuple(labeled(4, seed, False, "c")) for seed in range(8)}) > 1
    for seed in range(5):
        drawn = [set(labeled(n, seed, True, "d")) for n in (2, 4, 7)]
        assert drawn[0] < drawn[1] < drawn[2]
    independent = [[set(labeled(n, seed, False, "d")) for n in (2, 4)] for seed in range(8)]
    assert not all(small < large for small, large in independent)


@pytest.mark.parametrize("nested", [False, True])
def test_a_uniform_draw_is_reproducible_from_its_manifest(nested: bool, pascal: Path, tmp_path: Path) -> None:
    """As the module's docstring says it, from the seeds in the manifest and the list of candidates alone."""
    for seed in range(6):
        draw(protocol(nested=nested, seed=7), 4, pascal, tmp_path, seed)
        manifest = read_json(tmp_path / "manifest.json")
        assert manifest["protocol_seed"] == 7 and manifest["seed"] == seed and not manifest["stratified"]
        order = sorted((pascal / "lists/train_aug.txt").read_text().split(), key=str.encode)
        random.Random(f"7:{seed}" if nested else f"7:{seed}:4").shuffle(order)
        assert ids(tmp_path / "labeled.txt") == sorted(order[:4], key=str.encode)


def test_seeds_of_the_protocol_and_of_the_run_both_change_the_draw(pascal: Path, tmp_path: Path) -> None:
    def labeled(own: int, seed: int) -> tuple[str, ...]:
        draw(protocol(seed=own), 4, pascal, tmp_path, seed)
        return tuple(ids(tmp_path / "labeled.txt"))

    assert len({labeled(0, seed) for seed in range(5)}) > 1 and len({labeled(own, 0) for own in range(5)}) > 1


def test_manifest(pascal: Path, tmp_path: Path) -> None:
    draw(protocol(), 4, pascal, tmp_path, 2)
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["counts"] == {"labeled": 4, "unlabeled": 6, "val": 4}
    assert manifest["sha256"] == {n: sha256(tmp_path / f"{n}.txt") for n in ("labeled", "unlabeled", "val")}
    assert manifest["prepared_content_sha256"] == read_json(pascal / "manifest.json")["content_sha256"]
    assert (manifest["seed"], manifest["nested"], manifest["candidates"]) == (2, False, "train_aug")
    assert manifest["source"] == "drawn" and "files" not in manifest and "missing" not in manifest


# --- by class


def classes_of(prepared: Path, candidates: str = "train_aug") -> dict[str, set[int]]:
    """What the masks of the candidates show, read without the suite."""
    masks = {i: Image.open(prepared / "masks" / f"{i}.png") for i in ids(prepared / "lists" / f"{candidates}.txt")}
    return {image_id: set(np.unique(np.asarray(mask)).tolist()) - {255} for image_id, mask in masks.items()}


@pytest.fixture(scope="module")
def few_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of a background, classes 1 to 5, of which a single image shows the last, and ignored pixels."""
    folder, rng = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    (folder / "masks").mkdir()
    images = [f"2008_{i:06d}" for i in range(30)]
    for name, own in (("train", images[:12]), ("train_aug", images), ("val", ["2009_000001"])):
        write_ids(folder / "lists" / f"{name}.txt", own)
    for i, image_id in enumerate(images):
        mask = np.zeros((4, 4), np.uint8)
        mask[0], mask[3, 3] = rng.choice([0, 1, 2, 3, 4], 4, p=[0.55, 0.3, 0.08, 0.05, 0.02]), 255
        mask[1, 1] = 5 if i == 17 else 0
        Image.fromarray(mask).save(folder / "masks" / f"{image_id}.png")
    write_json(folder / "manifest.json", PREPARED | {"classes": [f"c{i}" for i in range(7)]})
    return folder


@settings(max_examples=200, deadline=None)
@given(
    shown=st.dictionaries(st.text("abc", min_size=1), st.frozensets(st.integers(0, 7), max_size=4), min_size=1),
    seed=st.integers(0, 50),
)
def test_the_images_in_front_are_one_of_each_class_rarest_first(shown: dict[str, frozenset[int]], seed: int) -> None:
    """An oracle that goes over all classes and images, without bookkeeping."""
    order = sorted(shown)
    random.Random(seed).shuffle(order)
    images = {label: sum(label in own for own in shown.values()) for label in range(8)}
    front: list[str] = []
    for rank in range(len(shown) + 1):
        for label in range(8):
            if images[label] == rank > 0 and not any(label in shown[i] for i in front):
                front += [i for i in order if label in shown[i]][:1]
    found = classes_first(order, shown)
    assert found[: len(front)] == front and len(set(front)) == len(front)
    assert found[len(front) :] == [i for i in order if i not in front], "the rest stays as it was drawn"
    everything = frozenset().union(*shown.values())
    assert frozenset().union(*(shown[i] for i in found[: len(everything)])) == everything


@pytest.mark.parametrize("nested", [False, True])
def test_a_stratified_draw_shows_every_class_as_soon_as_there_is_room(
    nested: bool, few_classes: Path, tmp_path: Path
) -> None:
    shown = classes_of(few_classes)
    everything = set().union(*shown.values())
    assert everything == set(range(6)), "no image shows class 6"
    drawn, uniform = set(), []
    for seed in range(8):
        lists: list[set[str]] = []
        for labelled in range(1, 16):
            draw(protocol(nested=nested), labelled, few_classes, tmp_path, seed, stratified=True)
            lists.append(set(ids(tmp_path / "labeled.txt")))
            lost = everything - set().union(*(shown[i] for i in lists[-1]))
            manifest = read_json(tmp_path / "manifest.json")
            assert manifest["stratified"] and manifest["missing"] == [f"c{label}" for label in sorted(lost)]
            assert "2008_000017" in lists[-1] and not (lost and labelled >= len(everything))
        assert not nested or all(small < large for small, large in itertools.pairwise(lists))
        drawn.add(frozenset(lists[7]))
        draw(protocol(nested=nested), 8, few_classes, tmp_path, seed)
        uniform.append(set().union(*(shown[i] for i in ids(tmp_path / "labeled.txt"))) == everything)
    assert len(drawn) == 8 and not all(uniform), "as random as the uniform draw, which lacks classes"


def test_only_candidates_are_drawn_and_asked_for_their_classes(pascal: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pascal, data)
    fine = set(ids(pascal / "lists/train.txt"))
    for image_id in set(ids(pascal / "lists/train_aug.txt")) - fine:
        (data / f"masks/{image_id}.png").unlink()
    draw(protocol("train"), 3, data, tmp_path / "split", 0, stratified=True)
    assert set(ids(tmp_path / "split/labeled.txt")) < fine
    (data / f"masks/{min(fine)}.png").unlink()
    with pytest.raises(UserError, match=f"masks/{min(fine)}.png: found no file"):
        draw(protocol("train"), 3, data, tmp_path / "split", 0, stratified=True)
    draw(protocol("train"), 3, data, tmp_path / "split", 0)  # uniform: no mask is read


@pytest.mark.parametrize(
    ("labelled", "missing", "refused"),
    [
        ("a", ["bird", "cat"], None),  # 1 image cannot be asked for 3 classes
        ("ad", ["bird", "cat"], None),
        (
            "ade",
            ["bird", "cat"],
            r"labeled\.txt: found no image of class 1 \(bird\), 2 \(cat\), expected .* 3 classes \(more",
        ),
        ("abd", ["cat"], r"found no image of class 2 \(cat\), expected one of each of the 3 classes .*than 3\)"),
        ("abc", [], None),
    ],
)
def test_a_class_without_a_labelled_image_is_named(labelled: str, missing: list[str], refused: str | None) -> None:
    shown = {"a": {0}, "b": {0, 1}, "c": {2}, "d": {0}, "e": set()}
    arguments = (labelled, {i: frozenset(own) for i, own in shown.items()}, ["ground", "bird", "cat", "dog"])
    if refused is None:
        assert check_classes(*arguments, Path("labeled.txt")) == missing, "no candidate shows a dog"
    else:
        with pytest.raises(UserError, match=refused):
            check_classes(*arguments, Path("labeled.txt"))


@pytest.mark.slow
def with_21_classes(folder: Path) -> None:
    """`params` in the folder, with a scale mini that has the images of the scale demo, and more of them."""
    shutil.copytree(Path(__file__).parents[2] / "params", folder / "params")
    file = folder / "params/scales/mini.yaml"
    scale = yaml.safe_load(file.read_text()) | {"seeds": [0, 1, 2], "tables": ["table2"]}
    scale["datasets"]["pascal"] = {"synthetic": {"seed": 0, "train": 80, "extra": 240, "val": 100, "size": [64, 96]}}
    scale["protocols"] = {"pascal_blender": {"fractions": {"1/16": 20, "1/8": 40, "1/4": 80, "1/2": 160}}}
    file.write_text(yaml.safe_dump(scale))


def test_stratified_lists_show_every_class_that_their_candidates_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the commands, on images of 21 classes. With the uniform draw lists of 20 lack some of them."""
    with_21_classes(tmp_path)
    monkeypatch.chdir(tmp_path)
    suite = load_suite("mini")
    data, drawn = suite.datasets["pascal"], suite.datasets["pascal"].synthetic
    assert drawn is not None
    folder = Path("data/mini")
    synthesize("pascal", folder / "archives", **drawn.model_dump())
    prepare(data, folder / "archives", folder / "pascal", 2)
    shown = classes_of(folder / "pascal")
    everything = set().union(*shown.values())
    assert len(everything) == 21
    blender = [run for run in suite.runs.values() if run.protocol == "pascal_blender"]
    uniform, splits = [], sorted({(run.split, run.labelled, run.seed) for run in blender})
    assert {(labelled, seed) for _, labelled, seed in splits} == {
        (n, seed) for n in (20, 40, 80, 160) for seed in range(3)
    }
    for name, labelled, seed in splits:
        app(["data", "split", "pascal_blender", str(labelled), "--seed", str(seed), "--scale", "mini"],
            standalone_mode=False)  # fmt: skip
        labeled = ids(folder / "splits" / name / "labeled.txt")
        assert len(labeled) == labelled and set().union(*(shown[i] for i in labeled)) == everything
        assert read_json(folder / "splits" / name / "manifest.json")["missing"] == []
        draw(suite.protocols["pascal_blender"], labelled, folder / "pascal", tmp_path / "uniform", seed)
        uniform.append(set().union(*(shown[i] for i in ids(tmp_path / "uniform/labeled.txt"))) == everything)
    assert not all(uniform)


def test_a_seed_that_is_not_the_scales_or_that_lists_have_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_21_classes(tmp_path)
    monkeypatch.chdir(tmp_path)
    for options, message in (
        (["--seed", "7"], r"--seed: found 7, expected one of the scale's 0, 1, 2"),
        (["--seed", "0", "--source", "cps"], r"--seed: found 0, expected no seed"),
    ):
        with pytest.raises(UserError, match=message):
            app(["data", "split", "pascal_blender", "20", *options, "--scale", "mini"], standalone_mode=False)
    assert not Path("data").exists()


# --- what is refused


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("labeled", lambda lines, other, val: [*lines, "2007_999999"], "unknown image 2007_999999"),
        ("labeled", lambda lines, other, val: [*lines, lines[0]], "twice"),
        ("labeled", lambda lines, other, val: [*lines, val[0]], "validation image"),
        ("unlabeled", lambda lines, other, val: [*lines, val[0]], "validation image"),
        ("labeled", lambda lines, other, val: [*lines, other[0]], "which is labelled"),
        ("unlabeled", lambda lines, other, val: lines[1:], "every training image"),
        ("val", lambda lines, other, val: lines[1:], "a difference at"),
        ("labeled", lambda lines, other, val: lines[::-1], "sha256"),
    ],
)
def test_check_refuses(name: str, change: Callable[..., list[str]], message: str, pascal: Path, tmp_path: Path) -> None:
    draw(protocol(), 4, pascal, tmp_path, 2)
    check(tmp_path, pascal)
    path, other = tmp_path / f"{name}.txt", ids(tmp_path / "unlabeled.txt")
    path.write_text("\n".join(change(ids(path), other, ids(tmp_path / "val.txt"))) + "\n")
    with pytest.raises(UserError, match=message):
        check(tmp_path, pascal)


def test_check_refuses_changed_data_and_missing_lists(pascal: Path, tmp_path: Path) -> None:
    data, split = tmp_path / "data", tmp_path / "split"
    shutil.copytree(pascal, data)
    draw(protocol(), 4, data, split, 0)
    manifest = read_json(data / "manifest.json")
    write_json(data / "manifest.json", manifest | {"content_sha256": "0" * 64})
    with pytest.raises(UserError, match="of the split"):
        check(split, data)
    (split / "val.txt").unlink()
    with pytest.raises(UserError, match="no file"):
        check(split, data)
    (data / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest.json: found no file"):
        draw(protocol(), 4, data, split, 0)


@pytest.mark.parametrize("scale_protocol", ["pascal_classic", "pascal_blender", "cityscapes"])
def test_paper_sizes(scale_protocol: str, tmp_path: Path) -> None:
    """At the paper's counts the lists have the published lengths: n, and 10,582 - n or 2,975 - n."""
    suite = load_suite("paper", Path(__file__).parents[2])
    params = suite.protocols[scale_protocol]
    counts = suite.datasets[params.dataset].counts
    prepared = tmp_path / "prepared"
    total = {"pascal": 10582, "cityscapes": 2975}[params.dataset]
    for name, count in counts.items():
        start = 20000 if name == "val" else 0
        write_ids(prepared / "lists" / f"{name}.txt", [f"2008_{start + i:06d}" for i in range(count)])
    write_json(prepared / "manifest.json", PREPARED)
    for labelled in params.fractions.values():
        draw(params, labelled, prepared, tmp_path / str(labelled), params.seed)
        labeled, unlabeled = (ids(tmp_path / str(labelled) / f"{name}.txt") for name in ("labeled", "unlabeled"))
        assert (len(labeled), len(unlabeled)) == (labelled, total - labelled)
