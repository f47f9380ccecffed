"""A bit is flipped in each kind of file that a later step trusts: the step notices it, or its results do not change."""

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from u2pl.cli.main import app
from u2pl.engine.seeding import seed_everything
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.files import sha256
from u2pl.models import build_network
from u2pl.ranks.stopping import StopRequest

pytestmark = pytest.mark.slow

SUPONLY, U2PL = (f"pascal_classic-4-{method}-seed0" for method in ("suponly", "u2pl"))
Files = dict[Path, bytes]


def call(*words: str) -> bool:
    """Whether the verb did its work; else it has refused with exit code 2 or, told to stop, with 75."""
    try:
        app(list(words), standalone_mode=False)
    except UserError as error:
        assert str(error).isprintable()
        return False
    except SystemExit as stop:
        return not stop.code
    return True


def files(*folders: str) -> Files:
    found = [path for folder in folders for path in Path(folder).rglob("*")]
    return {path: path.read_bytes() for path in sorted(found) if path.is_file()}


def put_back(before: Files) -> None:
    """Make the files what they were, writing only what differs; files that have come since go."""
    for path in files("data", "results", "weights"):
        if path not in before:
            path.unlink()
    for path, content in before.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def use_encoder_weights(folder: Path) -> None:
    """Let the runs start from a file, as those of the paper's scale do."""
    recipe = load_suite("demo", folder).runs[SUPONLY].recipe
    seed_everything(7, torch.device("cpu"))
    weights = folder / "weights" / "encoder.pth"
    weights.parent.mkdir()
    torch.save(build_network(recipe.network, 21).encoder.state_dict(), weights)
    declared = {"encoder.pth": {"file": "encoder.pth", "url": "", "sha256": sha256(weights)}}
    (folder / "params/weights.yaml").write_text(yaml.safe_dump(declared))
    path = folder / "params/scales/demo.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["recipes"]["pascal"]["network"]["weights"]["7x7"] = "weights/encoder.pth"
    path.write_text(yaml.safe_dump(scale))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_checkout: Any) -> Iterator[tuple[Path, Files]]:
    """A checkout with two finished runs and their table, and the content of its files; a test may change them."""
    folder = small_checkout(tmp_path_factory.mktemp("flips"))
    use_encoder_weights(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("data", "fetch", "weights", "encoder.pth") and call("data", "synthesize", "pascal")
        assert call("data", "fetch", "pascal", "voc") and call("data", "fetch", "pascal", "sbd")
        assert call("data", "prepare", "pascal") and call("data", "split", "pascal_classic", "4")
        assert call("train", SUPONLY) and call("train", U2PL)
        assert call("table", "small") and call("cells")
        yield folder, files("data", "results", "weights")


@pytest.fixture
def before(finished: tuple[Path, Files], monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.chdir(finished[0])
    yield finished[1]
    put_back(finished[1])


def flips(path: Path, n: int) -> Iterator[None]:
    """The file with one bit flipped, `n` times, at places that depend on its name and the count alone."""
    good = path.read_bytes()
    for seed in range(n):
        rng, bad = random.Random(f"{path.name} {seed}"), bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        yield


def noticed(paths: list[Path], n: int, before: Files, step: Callable[[], bool], results: Callable[[], Files]) -> int:
    """Flip a bit in each of the paths, `n` times, and take the step: how often it refused.

    Where it does its work, its `results` have to be those of before.
    """
    good, count = results(), 0
    assert paths and good
    for path in paths:
        for _ in flips(path, n):
            if step():
                assert {name: good.get(name) for name in results()} == results(), f"unnoticed in {path}"
            else:
                count += 1
            put_back(before)
    return count


def test_archives_their_manifests_and_records(before: Files) -> None:
    def step() -> bool:
        shutil.rmtree("data/demo/pascal")
        return call("data", "prepare", "pascal")

    def results() -> Files:
        return {path: content for path, content in files("data/demo/pascal").items() if path.name != "manifest.json"}

    folder = Path("data/demo/archives")
    archives = [folder / name for name in ("VOCtrainval_11-May-2012.tar", "benchmark.tgz")]
    assert noticed(archives, 4, before, step, results) == 8
    manifests = [path.with_name(f"{path.name}.json") for path in archives]
    assert noticed(manifests, 8, before, step, results) > 0
    records = [path.with_name(f".{path.name}.verified") for path in archives]
    noticed(records, 5, before, step, results)


def test_prepared_files(before: Files) -> None:
    """Images, masks and lists are made again from the archives; nothing is left of the flip."""

    def step() -> bool:
        return call("data", "split", "pascal_classic", "4")

    def results() -> Files:
        made = files("data/demo/pascal/images", "data/demo/pascal/masks", "data/demo/pascal/lists", "data/demo/splits")
        # A receipt has the hash of the very manifest that was read.
        return {path: content for path, content in made.items() if path.name != "made.json"}

    folder = Path("data/demo/pascal")
    prepared = [sorted((folder / kind).iterdir())[1] for kind in ("images", "masks", "lists")]
    noticed([*prepared, folder / "checksums.sha256", folder / "sources.json"], 6, before, step, results)
    assert noticed([folder / "manifest.json"], 25, before, step, results) > 0


def test_prepared_files_whose_archives_are_gone(before: Files) -> None:
    """They cannot be made again, so each flip is an error."""
    kept = {path: content for path, content in before.items() if path.parent != Path("data/demo/archives")}
    put_back(kept)
    folder = Path("data/demo/pascal")
    prepared = [sorted((folder / kind).iterdir())[0] for kind in ("images", "masks", "lists")]
    step = lambda: call("data", "split", "pascal_classic", "4")  # noqa: E731
    assert noticed(prepared, 5, kept, step, lambda: files("data/demo/splits")) == 15


def trained() -> Files:
    folder = Path("results/demo/runs") / SUPONLY
    return {folder / name: (folder / name).read_bytes() for name in ("weights.pt", "evaluation.json", "images.npz")}


def test_split_lists_and_their_manifest(before: Files) -> None:
    folder = Path("data/demo/splits/pascal_classic/drawn/4/seed0")

    def step() -> bool:
        return call("train", SUPONLY)

    lists = [folder / f"{name}.txt" for name in ("labeled", "unlabeled", "val")]
    assert noticed(lists, 5, before, step, trained) == 15
    assert noticed([folder / "manifest.json"], 12, before, step, trained) > 0


def test_encoder_weights(before: Files) -> None:
    paths = [Path("weights/encoder.pth")]
    assert noticed(paths, 8, before, lambda: call("train", SUPONLY), trained) == 8


def test_the_state_of_an_interrupted_training(before: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged one is refused or given up: either way the run ends with the bits of one that was not interrupted."""
    steps = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "pending", lambda self: next(steps) >= 4)
        assert not call("train", U2PL)
    (state,) = Path("results/demo/state").rglob("state.pt")
    folder = Path("results/demo/runs") / U2PL

    def results() -> Files:
        names = ("weights.pt", "evaluation.json", "images.npz")
        return {folder / name: (folder / name).read_bytes() for name in names}

    noticed([state], 5, before | {state: state.read_bytes()}, lambda: call("train", U2PL), results)


def test_weights_of_a_run(before: Files) -> None:
    paths = [Path("results/demo/runs") / SUPONLY / "weights.pt"]
    step = lambda: call("evaluate", SUPONLY)  # noqa: E731
    assert noticed(paths, 8, before, step, lambda: files(f"results/demo/runs/{SUPONLY}")) == 8


def test_evaluations_and_records_of_runs(before: Files) -> None:
    def step() -> bool:
        return call("table", "small") and call("cells")

    def results() -> Files:
        names = ("tables", "cells", "comparisons")
        return files(*(f"results/demo/{name}" for name in names)) | {
            path: path.read_bytes() for path in Path("results/demo").glob("*.*")
        }

    folder = Path("results/demo/runs") / U2PL
    assert noticed([folder / "evaluation.json"], 40, before, step, results) > 20
    noticed([folder / "run.json"], 20, before, step, results)
    assert noticed([folder / "history.csv"], 10, before, step, results) == 10
    assert noticed([folder / "images.npz"], 10, before, step, results) == 10
    (folder / "images.npz").unlink()
    assert not step(), "weights.pt is there, and so it is lost"


def test_each_digit_of_a_score(before: Files) -> None:
    """Random bits of an evaluation are mostly of its matrix; tables show its means."""
    path = Path("results/demo/runs") / U2PL / "evaluation.json"
    text = path.read_text()
    places = [match.start(1) + i for match in re.finditer(r'"miou": (\d+\.\d+)', text) for i in range(0, 15, 3)]
    assert len(places) >= 8
    for place in (place for place in places if text[place] != "."):
        path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        assert not call("cells"), text[place - 10 : place + 5]
