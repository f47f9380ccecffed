import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import PREPARED

from u2pl.data.lists import write_ids
from u2pl.data.splits.draw import check, draw
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.schema import Protocol
from u2pl.files import read_json, sha256, write_json


def protocol(candidates: str = "train_aug", nested: bool = False) -> Protocol:
    return Protocol(
        dataset="pascal", candidates=candidates, universe="train_aug", fractions={"full": 10}, nested=nested
    )  # type: ignore[arg-type]


def ids(path: Path) -> list[str]:
    return path.read_text().split()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labelled=st.integers(1, 10), seed=st.integers(0, 1000), nested=st.booleans())
def test_a_draw_partitions_the_universe(labelled: int, seed: int, nested: bool, pascal: Path, tmp_path: Path) -> None:
    draw(protocol(nested=nested), labelled, pascal, tmp_path, seed)
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


def test_manifest(pascal: Path, tmp_path: Path) -> None:
    draw(protocol(), 4, pascal, tmp_path, 2)
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["counts"] == {"labeled": 4, "unlabeled": 6, "val": 4}
    assert manifest["sha256"] == {n: sha256(tmp_path / f"{n}.txt") for n in ("labeled", "unlabeled", "val")}
    assert manifest["prepared_content_sha256"] == read_json(pascal / "manifest.json")["content_sha256"]
    assert (manifest["seed"], manifest["nested"], manifest["candidates"]) == (2, False, "train_aug")
    assert manifest["source"] == "drawn" and "files" not in manifest


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
