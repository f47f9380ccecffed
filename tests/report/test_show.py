"""Where numbers come from, and what no longer fits: a tiny tree made by the suite's own verbs, then tampered with."""

import contextlib
import hashlib
import json
import math
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import yaml
from made import scores

from u2pl.cli.main import main
from u2pl.experiments import load_suite, published_list
from u2pl.experiments.confusions import read_confusions, write_confusions
from u2pl.report.cells import read_cells, write_cells
from u2pl.report.checks import Check
from u2pl.report.classes import read_classes, write_classes
from u2pl.report.verify import verify

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TABLE = {
    "caption": "A small table.",
    "columns": [{"protocol": "pascal_classic", "fraction": "1/8"}, {"protocol": "pascal_blender", "fraction": "1/8"}],
    "rows": [
        {"title": "SupOnly", "method": "suponly", "paper": [54.92, None]},
        {"title": "PseudoSeg", "paper": [65.5, None]},
        {"title": "[u2pl] lists", "method": "suponly", "overrides": {"split_source": "u2pl"}, "paper": [None, 2]},
    ],
}
DATA, RESULTS = Path("data/tiny"), Path("results/tiny")
RUN = RESULTS / "runs/pascal_classic-4-suponly-seed0"
OTHER_LISTS = "pascal_classic-4-suponly-split_source=u2pl-seed0"
SECOND_COLUMN = "pascal_classic 1/8"


def call(*arguments: str) -> int:
    """The exit code of `u2pl`, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["u2pl", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with every file of one table of two seeds."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("params", "workflow"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    scale = yaml.safe_load((folder / "params/scales/demo.yaml").read_text().replace("data/demo", "data/tiny"))
    scale["recipes"]["pascal"] |= {"epochs": 1, "validate_every": 1}
    scale |= {"seeds": [0, 1], "tables": ["small"]}
    (folder / "params/scales/tiny.yaml").write_text(yaml.safe_dump(scale))
    (folder / "params/tables/small.yaml").write_text(yaml.safe_dump(TABLE))
    with (folder / "params/figures.yaml").open("a") as figures:
        figures.write("curves_small: {kind: curves, table: small, caption: Curves.}\n")
    suite = load_suite("tiny", folder)
    verbs = [["data", "synthesize", "pascal"], ["data", "prepare", "pascal", "--workers", "2"]]
    verbs[1:1] = [["data", "fetch", "pascal", archive] for archive in ("voc", "sbd")]
    for protocol, labelled in sorted({(spec.protocol, spec.labelled) for spec in suite.runs.values()}):
        lists = published_list(suite, "u2pl", protocol, labelled)
        assert lists is not None
        verbs.append(["data", "synthesize-lists", "u2pl", protocol])
        verbs += [["data", "fetch-list", "u2pl", path] for path in (lists.labelled, lists.unlabelled) if path]
        split = ["data", "split", protocol, str(labelled)]
        verbs += [[*split, "--seed", "0"], [*split, "--seed", "1"], [*split, "--source", "u2pl"]]
    verbs += [["train", run] for run in suite.runs] + [["cells"], ["table", "small"]]
    verbs += [*(["figure", name] for name in suite.figures), ["page"]]
    with contextlib.chdir(folder):
        for verb in verbs:
            assert call(*verb, "--scale", "tiny") == 0
    return folder


@pytest.fixture(autouse=True)
def inside(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    monkeypatch.setenv("COLUMNS", "80")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def words(text: str) -> str:
    """Without line breaks, so that a wrapped text is found."""
    return " ".join(text.split())


@contextlib.contextmanager
def edited(path: Path, edit: Callable[[bytes], bytes]) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(edit(before))
    try:
        assert path.read_bytes() != before
        yield
    finally:
        path.write_bytes(before)


@contextlib.contextmanager
def without(path: Path, aside: Path) -> Iterator[None]:
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


def checks() -> list[Check]:
    return verify(load_suite("tiny"), DATA, RESULTS)


def those(state: str) -> dict[str, Check]:
    return {str(check.path): check for check in checks() if check.state == state}


# --- verify


def test_everything_fits_and_every_file_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", "--scale", "tiny") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    found = checks()
    assert {check.state for check in found} == {"same"}
    looked = {str(check.path) for check in found}
    assert len(looked) == len(found) == sum(int(row[0]) for name, row in rows.items() if name != "files")
    beside = (".json", ".verified")
    for folder in (
        DATA / "archives",
        DATA / "lists",
        DATA / "pascal/images",
        DATA / "pascal/masks",
        RESULTS / "comparisons",
        RESULTS / "figures",
        RESULTS / "tables",
    ):
        # the checksum of a fetched file is recorded beside it
        assert {str(path) for path in folder.rglob("*") if path.is_file() and path.suffix not in beside} <= looked
    for run in RUN.parent.iterdir():
        names = ("run.json", "history.csv", "weights.pt", "evaluation.json", "images.npz")
        assert {str(run / name) for name in names} <= looked
    assert str(RESULTS / "classes.csv") in looked


def flip(data: bytes) -> bytes:
    """One bit of the byte in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def in_json(*keys: str | int, add: float) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        value = target = json.loads(data)
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] += add
        return json.dumps(value).encode()

    return edit


def a_digit(data: bytes) -> bytes:
    """The last digit of the file, changed."""
    at = max(data.rfind(str(digit).encode()) for digit in range(10))
    return data[:at] + (b"1" if data[at : at + 1] != b"1" else b"2") + data[at + 1 :]


def in_text(pattern: str, new: str) -> Callable[[bytes], bytes]:
    return lambda data: re.sub(pattern, new, data.decode(), count=1).encode()


@pytest.mark.parametrize(
    ("pattern", "edit"),
    [
        ("data/tiny/archives/*.tar", flip),
        ("data/tiny/archives/*.tgz", flip),
        ("data/tiny/archives/*.tar.json", lambda data: b"[]"),
        ("data/tiny/archives/*.tar.json", lambda data: b"{"),
        ("data/tiny/lists/u2pl/data/splits/pascal/183/labeled.txt.json", lambda data: b"{}"),
        ("data/tiny/pascal/images/*.jpg", flip),
        ("data/tiny/pascal/masks/*.png", flip),
        ("data/tiny/pascal/lists/train.txt", flip),
        ("data/tiny/pascal/checksums.sha256", flip),
        ("data/tiny/lists/u2pl/data/splits/pascal/183/labeled.txt", flip),
        ("data/tiny/splits/pascal_classic/drawn/4/seed0/labeled.txt", flip),
        ("data/tiny/splits/pascal_classic/u2pl/4/unlabeled.txt", flip),
        (f"{RUN}/weights.pt", flip),
        (f"{RUN}/history.csv", a_digit),
        (f"{RUN}/run.json", in_json("spec", "settings", "decoder_lr_multiplier", add=1)),
        (f"{RUN}/run.json", lambda data: data[: len(data) // 2]),
        (f"{RUN}/evaluation.json", in_text(r'"miou": [0-9.e-]+', '"miou": NaN')),
        (f"{RUN}/evaluation.json", in_text(r'"miou": [0-9.e-]+', '"miou": 1e999')),
        (f"{RUN}/evaluation.json", in_text(r'"weights_sha256": "[0-9a-f]+"', '"weights_sha256": ""')),
        (f"{RUN}/run.json", in_text(r'"images_per_s": [0-9.e-]+', '"images_per_s": NaN')),
        (f"{RUN}/evaluation.json", in_json("best", "confusion", 0, 0, add=1)),
        (f"{RUN}/evaluation.json", in_json("last", "confusion", 2, 1, add=1)),
        (f"{RUN}/evaluation.json", in_json("best", "miou", add=1e-9)),
        (f"{RUN}/evaluation.json", in_json("last", "iou", 0, add=1e-9)),
        (f"{RUN}/evaluation.json", lambda data: b"{}"),
        (f"{RUN}/images.npz", flip),
        (f"{RUN}/images.npz", lambda data: b""),
        ("results/tiny/classes.csv", lambda data: data.replace(b"aeroplane", b"aeroplanes", 1)),
        ("results/tiny/cells.csv", lambda data: data.replace(b"54.92", b"54.93")),
        ("results/tiny/cells/small.csv", lambda data: data.replace(b"54.92", b"54.93")),
        ("results/tiny/comparisons/small.csv", lambda data: data.replace(b"against", b"beside")),
        ("results/tiny/tables/small.csv", a_digit),
        ("results/tiny/tables/small.md", a_digit),
        ("results/tiny/tables/small.tex", a_digit),
        ("results/tiny/figures/comparison_small.pdf", flip),
        ("results/tiny/figures/curves_small.png", flip),
        ("results/tiny/index.html", a_digit),
    ],
)
def test_what_was_tampered_with_is_named_and_nothing_else(
    pattern: str, edit: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted(Path().glob(pattern))[0]
    with edited(path, edit):
        assert list(those("differs")) == [str(path)]
        assert call("verify", "--scale", "tiny") == 1
        out = capsys.readouterr().out
        assert out.splitlines()[0] == str(path) and out.count("  found     ") == out.count("  expected  ") == 1


def test_a_split_that_no_run_names_is_checked_too(tmp_path: Path) -> None:
    lists = published_list(load_suite("tiny"), "u2pl", "pascal_classic", 8)
    assert lists is not None and lists.unlabelled is not None
    with contextlib.ExitStack() as stack:
        for source in ("drawn", "u2pl"):
            folder = DATA / "splits/pascal_classic" / source / "8"
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for path in (lists.labelled, lists.unlabelled):
            assert call("data", "fetch-list", "u2pl", path, "--scale", "tiny") == 0
        for source in ("drawn", "u2pl"):
            assert call("data", "split", "pascal_classic", "8", "--source", source, "--scale", "tiny") == 0
        assert those("differs") == {}
        drawn = DATA / "splits/pascal_classic/drawn/8/seed0"
        for path in (drawn / "labeled.txt", folder / "unlabeled.txt", DATA / "lists/u2pl" / lists.labelled):
            with edited(path, flip):
                assert str(path) in those("differs")
        with edited(drawn / "manifest.json", lambda data: data.replace(b'"pascal"', b'"../pascal"')):
            assert those("differs")[str(drawn / "manifest.json")].found == "dataset '../pascal'"


def test_found_and_expected_are_told() -> None:
    image = min((DATA / "pascal/images").iterdir())
    right = digest(image)
    with edited(image, flip):
        check = those("differs")[str(image)]
        assert check.found == f"sha256 {digest(image)}" and check.expected.startswith(right)
    with edited(RUN / "evaluation.json", in_json("best", "miou", add=1)):
        check = those("differs")[str(RUN / "evaluation.json")]
        miou = content(RUN / "evaluation.json")["best"]["miou"]
        assert check.found == f"best.miou {miou}"
        assert float(check.expected.split()[0]) == pytest.approx(miou - 1, rel=1e-12)
    with edited(RESULTS / "tables/small.md", lambda data: data.replace(b"(54.92)", b"(55.92)")):
        check = those("differs")[str(RESULTS / "tables/small.md")]
        assert "(55.92)" in check.found and "(54.92)" in check.expected


def test_a_recorded_hash_counts_whole() -> None:
    """Params may give the first digits of a hash; what the suite records is the whole of it."""
    for digits in (0, 8):
        cut = in_text(rf'("history.csv": "[0-9a-f]{{{digits}}})[0-9a-f]*', r"\1")
        with edited(RUN / "run.json", cut):
            assert str(RUN / "run.json") in those("differs")


def test_what_shows_a_changed_history_is_not_checked() -> None:
    with edited(RUN / "history.csv", a_digit):
        left_out = set(those("unchecked"))
    shown = [RESULTS / f"figures/{name}_small.{kind}" for name in ("curves", "comparison") for kind in ("pdf", "png")]
    assert left_out == {str(path) for path in [*shown, RESULTS / "index.html"]}


def test_matrices_per_image_of_another_sum_are_found(tmp_path: Path) -> None:
    """As if both were written anew, from other predictions: the hash fits, and the sum does not."""
    path = RUN / "images.npz"
    confusions = read_confusions(path, path.read_bytes())
    confusions.counts["last"][3, 0, 0] += 1
    again = write_confusions(tmp_path / "images.npz", confusions)
    recorded = in_text(r'"images_sha256": "[0-9a-f]+"', f'"images_sha256": "{again}"')
    with edited(path, lambda data: (tmp_path / "images.npz").read_bytes()), edited(RUN / "evaluation.json", recorded):
        (check,) = those("differs").values()
        left_out = set(those("unchecked"))
        assert call("cells", "--scale", "tiny") == 2
    assert (str(check.path), check.found) == (str(path), "last matrices of another sum")
    assert check.expected == f"last.confusion of {RUN}/evaluation.json"
    assert left_out == {f"{RESULTS}/classes.csv", f"{RESULTS}/index.html"}


def test_records_alone_have_no_matrices_per_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of the scale mini in a clone: neither weights.pt nor images.npz."""
    suite = load_suite("tiny")
    with without(RUN / "weights.pt", tmp_path / "weights"), without(RUN / "images.npz", tmp_path / "images"):
        assert call("verify", "--scale", "tiny") == 0
        assert set(those("absent")) == {f"{RUN}/weights.pt", f"{RUN}/images.npz"}
        assert set(those("unchecked")) == {f"{RESULTS}/classes.csv", f"{RESULTS}/index.html"}
        write_classes(suite, RESULTS, tmp_path / "classes.csv")
        capsys.readouterr()
        assert call("show", RUN.name, "--scale", "tiny") == 0
    text = words(capsys.readouterr().out)
    assert f"images none over validation images: no images.npz; `u2pl evaluate {RUN.name}` writes it" in text
    classes = read_classes(tmp_path / "classes.csv")
    absent = classes[classes["image_run"] == RUN.name]
    assert len(absent) and (absent["images"] == 0).all() and absent[["image_low", "image_high"]].isna().all(axis=None)
    assert absent["mean"].notna().any() and (classes[classes["image_run"] != RUN.name]["images"] == 8).all()


def test_runs_of_earlier_versions_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """evaluation.json without images_sha256, and no images.npz: known to be absent, so that classes.csv is checked."""
    older = in_text(r'"images_sha256": "[0-9a-f]+",\s*', "")
    with edited(RUN / "evaluation.json", older), without(RUN / "images.npz", tmp_path / "images"):
        write_classes(load_suite("tiny"), RESULTS, tmp_path / "classes.csv")
        with edited(RESULTS / "classes.csv", lambda data: (tmp_path / "classes.csv").read_bytes()):
            assert set(those("absent")) == {f"{RUN}/images.npz"}
            assert str(RESULTS / "classes.csv") not in those("differs") | those("unchecked")


def test_checksums_are_those_of_sha256sum() -> None:
    tool, path = shutil.which("sha256sum"), DATA / "pascal/checksums.sha256"
    if tool is None:
        pytest.skip("no sha256sum here")
    assert digest(path) == content(DATA / "pascal/manifest.json")["content_sha256"]
    done = subprocess.run([tool, "--check", "--strict", path.name], cwd=path.parent, capture_output=True, text=True)
    files = sum(file.is_file() for name in ("images", "masks", "lists") for file in (path.parent / name).iterdir())
    assert done.returncode == 0 and done.stdout.count(": OK") == files


def test_a_lost_file_of_a_finished_step_differs(tmp_path: Path) -> None:
    masks = (DATA / "pascal/masks").iterdir()
    for path in (min(masks), DATA / "pascal/checksums.sha256", RUN / "history.csv", RUN / "images.npz"):
        with without(path, tmp_path / "aside"):
            assert {name: check.found for name, check in those("differs").items()} == {str(path): "no file"}


@pytest.mark.parametrize(
    ("lost", "absent", "unchecked"),
    [
        ("data/tiny/archives/benchmark.tgz", {"data/tiny/archives/benchmark.tgz"}, set()),
        # as after `dvc pull`: the manifests without the prepared files
        ("data/tiny/pascal/images", {"data/tiny/pascal"}, set()),
        ("data/tiny/splits", {f"data/tiny/splits/pascal_{name}" for name in ("classic", "blender")}, set()),
        # as those of the scale mini, which are not versioned
        (f"{RUN}/weights.pt", {f"{RUN}/weights.pt"}, set()),
        (
            str(RUN),
            {str(RUN)},
            {
                f"results/tiny/{name}"
                for name in ("cells", "claims", "classes", "comparisons", "gains", "tables", "figures", "index")
            },
        ),
        ("results/tiny/tables", {"results/tiny/tables"}, set()),
        ("results/tiny/figures", {"results/tiny/figures"}, set()),
    ],
)
def test_what_is_not_made_is_no_failure(
    lost: str, absent: set[str], unchecked: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with without(Path(lost), tmp_path / "aside"):
        assert call("verify", "--scale", "tiny") == 0
        assert f"not here: {lost.rpartition('/images')[0] or lost}" in capsys.readouterr().out
        states = {state: list(those(state)) for state in ("absent", "unchecked")}
    for state, prefixes in (("absent", absent), ("unchecked", unchecked)):
        assert bool(states[state]) == bool(prefixes)
        assert all(path.startswith(tuple(prefixes)) for path in states[state])


def test_runs_of_other_params_data_or_lists_are_named() -> None:
    runs = {str(path / "run.json") for path in RUN.parent.iterdir()}
    with edited(Path("params/scales/tiny.yaml"), lambda data: data.replace(b"lr: 0.01", b"lr: 0.03")):
        found = those("differs")
        assert set(found) == runs and {check.found for check in found.values()} == {"recipe.lr = 0.01"}
        assert {check.expected for check in found.values()} == {"0.03 of today's params"}
    with edited(DATA / "pascal/manifest.json", lambda data: data + b" "):
        found = those("differs")
        assert set(found) == runs and all(check.found.startswith("data_sha256 ") for check in found.values())
    with edited(DATA / "splits/pascal_classic/drawn/4/seed0/manifest.json", lambda data: data + b" "):
        assert set(those("differs")) == {str(RUN / "run.json")}, "the run of the other seed has lists of its own"


def test_archives_are_checked_against_params_too() -> None:
    archive = DATA / "archives/VOCtrainval_11-May-2012.tar"
    for algorithm, value in (("md5", "0" * 32), ("sha256", "0" * 8)):

        def declare(data: bytes, algorithm: str = algorithm, value: str = value) -> bytes:
            scale = yaml.safe_load(data)
            scale["datasets"]["pascal"].setdefault("archives", {}).setdefault("voc", {})[algorithm] = value
            return yaml.safe_dump(scale).encode()

        with edited(Path("params/scales/tiny.yaml"), declare):
            (check,) = those("differs").values()
        right = hashlib.new(algorithm, archive.read_bytes()).hexdigest()
        found = (check.path, check.found, check.expected)
        assert found == (archive, f"{algorithm} {right}", f"{value} of params")


def test_an_unknown_scale_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", "--scale", "tinny") == 2
    assert capsys.readouterr().err == "u2pl: scale 'tinny': found no such file in params/scales, expected 'tiny'\n"


# --- show


def test_a_cell_is_traced_to_files_and_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "small", "SupOnly", SECOND_COLUMN, "--scale", "tiny", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    runs = [RUN, RUN.with_name(RUN.name.replace("seed0", "seed1"))]
    miou = [content(run / "evaluation.json")["best"]["miou"] for run in runs]
    cell = shown["cell"]
    assert (cell["n"], cell["paper"], cell["checkpoint"], cell["source"]) == (2, 54.92, "best", "measured")
    assert cell["mean"] == pytest.approx(statistics.fmean(miou)) and cell["std"] == pytest.approx(
        statistics.stdev(miou)
    )
    half = float(scipy.stats.t.ppf(0.975, 1)) * statistics.stdev(miou) / math.sqrt(2)
    assert (cell["low"], cell["high"]) == pytest.approx((cell["mean"] - half, cell["mean"] + half))
    assert (cell["verdict"], cell["difference"]) == ("not comparable", None)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    for run, record in zip(runs, shown["runs"], strict=True):
        assert record == content(run / "run.json") | {"miou": record["miou"]}
        assert record["files"] == {name: digest(run / name) for name in ("weights.pt", "history.csv")}
        seed = record["spec"]["seed"]
        origin, split = record["provenance"], DATA / f"splits/pascal_classic/drawn/4/seed{seed}/manifest.json"
        assert (origin["split_sha256"], origin["split"]) == (digest(split), content(split))
        assert origin["data_sha256"] == digest(DATA / "pascal/manifest.json")
        archives = [path for path in (DATA / "archives").iterdir() if path.suffix not in (".json", ".verified")]
        assert origin["data"]["archives"] == {path.name: digest(path) for path in archives}
        if head.returncode == 0:
            assert origin["git"]["commit"] == head.stdout.strip()
    assert (run / "run.json").stat().st_size < 16_000


def test_the_text_says_the_same_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", RUN.name, "--scale", "tiny") == 0
    out = capsys.readouterr().out
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines[:-1])) <= 80
    record, evaluation = content(RUN / "run.json"), content(RUN / "evaluation.json")
    origin = record["provenance"]
    text = words(out)
    for name in ("best", "last"):
        assert f"{evaluation[name]['miou']:.2f} %" in text
    hashes = [origin[key] for key in ("params_sha256", "split_sha256", "data_sha256")]
    hashes += [record["files"]["weights.pt"], origin["data"]["content_sha256"], *origin["data"]["archives"].values()]
    for whole in hashes:
        assert any(whole in line for line in lines), "a hash is not broken"
    for part in ("4 labelled, 44 unlabelled, 8 validation images; drawn, seed 0", origin["cpu"], origin["platform"]):
        assert words(part) in text
    assert f"torch {origin['libraries']['torch']}" in text and "random initialisation" in text
    assert f"{origin['images_per_s']:.1f} images/s, peak memory {origin['peak_memory_mb']:.0f} MiB" in text
    assert "small, SupOnly, pascal_classic 1/8 (4)" in text


def test_seeds_share_what_is_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "small", "SupOnly", SECOND_COLUMN, "--scale", "tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines[:-1]) <= 80
    assert "mean ± sample standard deviation of 2 seeds" in words(" ".join(lines))
    records = [content(RUN.with_name(RUN.name.replace("seed0", f"seed{seed}")) / "run.json") for seed in (0, 1)]
    assert sum(records[0]["provenance"]["data_sha256"] in line for line in lines) == 1
    for seed, record in enumerate(records):
        (row,) = [line.split() for line in lines if record["files"]["weights.pt"][:12] in line]
        assert row[0] == str(seed) and row[1] == f"{record['best_miou']:.2f}"
        assert any(f"seed {seed}:" in line for line in lines), "the hash of the params, which hold the seed"


def test_intervals_over_images_stand_beside_those_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "small", "SupOnly", SECOND_COLUMN, "--scale", "tiny") == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    classes = read_classes(RESULTS / "classes.csv")
    rows = classes[(classes["row"] == "SupOnly") & (classes["protocol"] == "pascal_classic")]
    assert rows["class"].tolist()[1:] == [label.name for label in load_suite("tiny").datasets["pascal"].classes]
    mean = rows.iloc[0]
    ends = f"{mean['image_low']:.2f} to {mean['image_high']:.2f}"
    text = words(" ".join(lines))
    assert (
        f"images {ends} % over 8 validation images, one network (seed 0, best, {mean['image_iou']:.2f} %; 95 %" in text
    )
    assert 0 <= mean["image_low"] < mean["image_high"] <= 100
    heading = next(i for i, line in enumerate(lines) if line.startswith("class "))
    assert words(lines[heading]) == "class IoU %, best ± over seeds over images, seed 0"
    for line, row in zip(lines[heading + 1 :], rows.to_dict("records"), strict=False):
        value = lambda number: "–" if math.isnan(number) else f"{number:.2f}"  # noqa: E731
        spans = [(row["low"], row["high"]), (row["image_low"], row["image_high"])]
        ends = " ".join("–" if math.isnan(low) else f"{low:.2f} to {high:.2f}" for low, high in spans)
        assert words(line) == f"{row['class']} {value(row['mean'])} {value(row['std'])} {ends}"
    assert call("show", RUN.name, "--scale", "tiny", "--json") == 0
    shown = json.loads(capsys.readouterr().out)["classes"]
    assert {name: row["image_iou"] for name, (row, *_) in shown.items()} == {
        name: content(RUN / "evaluation.json")[name]["miou"] for name in ("best", "last")
    }


def test_factors_that_differ_from_the_paper_stand_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", OTHER_LISTS, "--scale", "tiny") == 0
    text = words(capsys.readouterr().out)
    assert "factors split_source = u2pl (paper preset: drawn) as the paper preset: " in text
    assert "Haochen-Wang409" not in text and "; u2pl at commit ab3d2be313d4" in text


def test_a_verdict_is_told_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds around 50 that lie 4 apart, as if on the paper's data, against its 54.92 at a margin of 1."""
    evaluations = [RUN.with_name(RUN.name.replace("seed0", f"seed{seed}")) / "evaluation.json" for seed in (0, 1)]

    def measure(miou: float) -> Callable[[bytes], bytes]:
        changed = {name: scores(miou, classes=21) for name in ("best", "last")} | {"images_sha256": None}
        return lambda data: json.dumps(json.loads(data) | changed).encode()

    with contextlib.ExitStack() as stack:
        for path, miou in zip(evaluations, (48.0, 52.0), strict=True):
            stack.enter_context(edited(path, measure(miou)))
        real = lambda data: data.replace(b"synthetic: true", b"synthetic: false")  # noqa: E731
        stack.enter_context(edited(Path("params/scales/tiny.yaml"), real))
        assert call("show", "small", "SupOnly", SECOND_COLUMN, "--scale", "tiny") == 0
    text = words(capsys.readouterr().out)
    # t(0.975, 1 degree of freedom) = 12.7062; the standard error is 2
    assert "interval 24.59 to 75.41 % over seeds (95 % t interval of the mean) images none" in text
    assert "no images.npz" in text and "writes it paper 54.92 %" in text
    assert "verdict inconclusive at a margin of 1 mIoU; ours minus the paper's -4.92, the interval holds the" in text


def test_a_cell_shows_what_depends_on_the_others_as_cells_csv_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if on the paper's data; without the run of another cell, what depends on it is not known."""
    real = lambda data: data.replace(b"synthetic: true", b"synthetic: false")  # noqa: E731
    names = ["p", "q", "moderated_std", "moderated_low", "moderated_high"]
    with edited(Path("params/scales/tiny.yaml"), real):
        suite = load_suite("tiny")
        write_cells(suite, RESULTS, tmp_path / "cells.csv")
        (row,) = (
            line
            for line in read_cells(tmp_path / "cells.csv").to_dict("records")
            if (line["row"], line["protocol"]) == ("SupOnly", "pascal_classic")
        )
        arguments = ["show", "small", "SupOnly", SECOND_COLUMN, "--scale", "tiny"]
        assert call(*arguments, "--json") == 0
        cell = json.loads(capsys.readouterr().out)["cell"]
        assert {n: cell[n] for n in names} == pytest.approx({n: None if row[n] != row[n] else row[n] for n in names})
        assert (cell["moderated_verdict"], cell["lists"]) == (row["moderated_verdict"], row["lists"])
        assert cell["q"] is not None
        assert call(*arguments) == 0
        assert f"q {row['q']:.3f} over the cells of small" in words(capsys.readouterr().out)
        other = next(run for run in suite.runs if run.startswith("pascal_blender"))
        with without(RESULTS / "runs" / other / "run.json", tmp_path / "run.json"):
            assert call(*arguments, "--json") == 0
            alone = json.loads(capsys.readouterr().out)["cell"]
    assert alone["p"] == cell["p"] and {alone[n] for n in names[1:]} == {None} and alone["moderated_verdict"] == ""


def test_a_quoted_cell_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "small", "PseudoSeg", SECOND_COLUMN, "--scale", "tiny") == 0
    text = words(capsys.readouterr().out)
    assert (
        "65.50 %" in text
        and "Quoted by the paper" in text
        and "params/tables/small.yaml" in text
        and "snakemake" not in text
    )
    assert call("show", "small", "PseudoSeg", SECOND_COLUMN, "--scale", "tiny", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["cell"]["source"] == "quoted" and shown["runs"] == [] and shown["cell"]["mean"] is None


def test_a_title_in_brackets_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "small", "[u2pl] lists", "pascal_blender 1/8 (6)", "--scale", "tiny") == 0
    assert "small, [u2pl] lists, pascal_blender 1/8 (6)" in capsys.readouterr().out


def test_a_damaged_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with edited(RESULTS / "tables/small.md", lambda data: b"\xff" + data):
        assert call("show", "small", "--scale", "tiny") == 2
    assert (err := capsys.readouterr().err).startswith("u2pl: results/tiny/tables/small.md: ") and err.count("\n") == 1


def test_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "small", "--scale", "tiny") == 0
    out = capsys.readouterr().out
    assert "A small table." in out and "PseudoSeg" in out and "(65.50)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smal"], "run or table at scale 'tiny': found 'smal', expected 'small'"),
        ([RUN.name.replace("classic", "clasic")], f"expected '{RUN.name}'"),
        (["smal", "SupOnly", "1/8"], "table at scale 'tiny': found 'smal', expected 'small'"),
        (["small", "SupOnl", "1/8"], "row of small: found 'SupOnl', expected 'SupOnly'"),
        (["small", "SupOnly", "pascal_clasic 1/8"], "expected 'pascal_classic 1/8'"),
        (["small", "SupOnly", "1/8"], "found 2 columns, expected 'pascal_classic 1/8' or 'pascal_blender 1/8'"),
        (["small", "SupOnly"], "show: found 2 arguments, expected a table; a table, a row and a column; or a run id"),
        (["small", "--json"], "numbers are in results/tiny/tables/small.csv"),
    ],
)
def test_a_mistake_ends_in_one_line_with_what_was_meant(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("show", *arguments, "--scale", "tiny") == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_run_that_is_not_made_tells_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with without(RUN, tmp_path / "aside"):
        assert call("show", RUN.name, "--scale", "tiny") == 2
    assert f"{RUN}/run.json: found no file" in (err := capsys.readouterr().err) and "snakemake --cores 1" in err


def test_a_record_of_another_version_is_no_crash(capsys: pytest.CaptureFixture[str]) -> None:
    for edit in (lambda data: b"{}", lambda data: b"[]", lambda data: data.replace(b'"split_sha256"', b'"split_sha"')):
        with edited(RUN / "run.json", edit):
            assert call("show", RUN.name, "--scale", "tiny") == 2
            assert f"{RUN.name}/run.json: " in capsys.readouterr().err


def test_the_command_recomputes_that_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", OTHER_LISTS, "--scale", "tiny", "--json") == 0
    command = shlex.split(json.loads(capsys.readouterr().out)["command"])
    tool = Path(sys.executable).parent / command[0]
    done = subprocess.run([tool, *command[1:], "--dry-run"], capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert [run.name for run in RUN.parent.iterdir() if f"output: {run}/run.json" in text] == [OTHER_LISTS]
