"""Published lists, at a small size; those of the real repositories where a copy of them stands."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from made import PREPARED

from u2pl.data.lists import write_ids
from u2pl.data.sources.fetch import fetch
from u2pl.data.splits.draw import check
from u2pl.data.splits.published import archive, install, parse
from u2pl.data.synthetic.lists import mirror
from u2pl.errors import UserError
from u2pl.experiments import load_suite, published_list
from u2pl.experiments.schema import ListHashes, Protocol, PublishedList, PublishedSource
from u2pl.files import read_json, write_json

ROOT = Path(__file__).parents[2]
LISTS = Path(os.environ.get("U2PL_REAL_DATA", ROOT.parent / "shared/data/real")).parent
# Upstream's folders -> those of the copies.
COPIES = {
    "data/splits": "splits",
    "DATA/city/config_new/subset_train": "splits_cps/city",
    "DATA/pascal_voc/subset_train_aug": "splits_cps/pascal_voc",
}

UNIVERSE = [f"2008_{i:06d}" for i in range(12)]
FINE, VAL = UNIVERSE[:6], ["2009_000001", "2009_000002"]
FILES = PublishedList(labelled="a/labeled.txt", unlabelled="a/unlabeled.txt")
PROTOCOL = Protocol(dataset="pascal", candidates="train", universe="train_aug", fractions={"1/4": 3})


def prepared_folder(folder: Path, lists: dict[str, list[str]]) -> Path:
    for name, ids in lists.items():
        write_ids(folder / "lists" / f"{name}.txt", ids)
    write_json(folder / "manifest.json", PREPARED)
    return folder


def published(folder: Path, files: dict[str, bytes], hashes: bool = True) -> PublishedSource:
    """A source whose files stand in `folder`."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    # Independent of the suite: the text between the newlines, sorted.
    known = {
        path: ListHashes(
            file=hashlib.sha256(content).hexdigest(),
            ids=hashlib.sha256(b"\n".join(sorted(content.split()))).hexdigest(),
        )
        for path, content in files.items()
    }
    return PublishedSource(
        repository="someone/lists",
        commit="0" * 40,
        url=f"{folder.as_uri()}/",
        lists={"classic": {"1/4": FILES}},
        sha256=known if hashes else None,
    )


def contents(labelled: list[str], unlabelled: list[str], newline: str = "\n", last: str = "\n") -> dict[str, bytes]:
    pairs = ((FILES.labelled, labelled), ("a/unlabeled.txt", unlabelled))
    return {path: (newline.join(ids) + last).encode() for path, ids in pairs}


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    return prepared_folder(tmp_path / "pascal", {"train": FINE, "train_aug": UNIVERSE, "val": VAL})


def make(source: PublishedSource, tmp_path: Path, files: PublishedList = FILES) -> Path:
    """Fetch and install, as the workflow does; the split's folder."""
    for path in (files.labelled, files.unlabelled):
        if path is not None:
            fetch(archive(source, path), tmp_path / "fetched" / path)
    split = tmp_path / "split"
    install("mine", source, files, PROTOCOL, 3, folder=tmp_path / "fetched", prepared=tmp_path / "pascal", target=split)
    return split


@pytest.mark.parametrize(
    ("line", "image_id"),
    [
        ("2007_000032", "2007_000032"),
        ("/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png", "2007_000032"),
        ("leftImg8bit/train/ulm/ulm_000061_000019_leftImg8bit.png", "ulm_000061_000019"),
        (
            "/images/train/jena_000078_000019.png\t/segmentation/train/jena_000078_000019_gtFine.png",
            "jena_000078_000019",
        ),
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_lines_of_the_published_formats(line: str, image_id: str, end: str) -> None:
    assert parse(line + end, "list") == [image_id]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", "a twice"),
        ("x/a.jpg\ny/a.jpg", "a twice"),
        ("../..", "'../..'"),
        ("images/a.png masks/b.png", "an image and its mask"),
        ("<html>404</html>", "an image id"),
        ("a b c", "an image id"),
    ],
)
def test_other_lines_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match="list: found .*" + message):
        parse(text, "list")


@pytest.mark.parametrize(("newline", "last"), [("\n", "\n"), ("\n", ""), ("\r\n", "\r\n"), ("\r\n", "")])
@pytest.mark.parametrize("hashes", [True, False])
def test_any_line_ending_gives_the_split(newline: str, last: str, hashes: bool, prepared: Path, tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(UNIVERSE[3:], 9)
    source = published(tmp_path / "upstream", contents(FINE[:3], shuffled, newline, last), hashes)
    split = make(source, tmp_path)
    assert (split / "labeled.txt").read_text().split() == FINE[:3]
    assert (split / "unlabeled.txt").read_text() == "".join(f"{i}\n" for i in UNIVERSE[3:])
    assert (split / "val.txt").read_text().split() == VAL
    manifest = read_json(split / "manifest.json")
    assert manifest["counts"] == {"labeled": 3, "unlabeled": 9, "val": 2}
    assert (manifest["source"], manifest["commit"], manifest["verified"]) == ("mine", "0" * 40, hashes)
    ids = hashlib.sha256("\n".join(FINE[:3]).encode()).hexdigest()
    assert manifest["files"]["labeled"]["sha256_ids"] == ids
    check(split, prepared)


def test_the_rest_is_unlabelled_where_no_list_says_so(prepared: Path, tmp_path: Path) -> None:
    source = published(tmp_path / "upstream", contents(FINE[:3], []))
    split = make(source, tmp_path, FILES.model_copy(update={"unlabelled": None}))
    assert (split / "unlabeled.txt").read_text().split() == UNIVERSE[3:]
    assert read_json(split / "manifest.json")["files"]["unlabeled"] is None
    check(split, prepared)


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "message"),
    [
        (FINE[:2], UNIVERSE[2:], "a/labeled.txt: found 2 images, expected the 3"),
        ([*FINE[:2], "2007_999999"], UNIVERSE[2:], "unknown image 2007_999999, expected images of .*train.txt"),
        ([*FINE[:2], UNIVERSE[8]], [*FINE[2:], *UNIVERSE[6:8], *UNIVERSE[9:]], "unknown image 2008_000008"),
        ([*FINE[:2], VAL[0]], UNIVERSE[2:], "validation image"),
        (FINE[:3], UNIVERSE[2:], "a/unlabeled.txt: found 2008_000002, which is labelled"),
        (FINE[:3], UNIVERSE[4:], "a/unlabeled.txt: found no 2008_000003"),
        (FINE[:3], [*UNIVERSE[3:], "2007_999999"], "a/unlabeled.txt: found unknown image"),
    ],
)
def test_lists_that_do_not_fit(
    labelled: list[str], unlabelled: list[str], message: str, prepared: Path, tmp_path: Path
) -> None:
    source = published(tmp_path / "upstream", contents(labelled, unlabelled))
    with pytest.raises(UserError, match=message) as caught:
        make(source, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "split").exists()


def test_hashes_of_bytes_and_of_ids(prepared: Path, tmp_path: Path) -> None:
    files = contents(FINE[:3], UNIVERSE[3:])
    source = published(tmp_path / "upstream", files)
    make(source, tmp_path)
    (tmp_path / "fetched" / FILES.labelled).write_bytes(files[FILES.labelled] + b"\n")  # edited after it was fetched
    with pytest.raises(UserError, match="a/labeled.txt: found sha256"):
        install("mine", source, FILES, PROTOCOL, 3,
                folder=tmp_path / "fetched", prepared=prepared, target=tmp_path / "split")  # fmt: skip
    assert source.sha256 is not None
    wrong = source.sha256[FILES.labelled].model_copy(update={"ids": "0" * 64})
    with pytest.raises(UserError, match="of its ids, expected 0000"):
        make(source.model_copy(update={"sha256": source.sha256 | {FILES.labelled: wrong}}), tmp_path)
    wrong = wrong.model_copy(update={"file": "0" * 64})
    with pytest.raises(UserError, match="found sha256 .* expected 0000"):
        make(source.model_copy(update={"sha256": source.sha256 | {FILES.labelled: wrong}}), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no file, expected a published list"), (b"\xff\xfe", "published")]
)
def test_unreadable_lists(content: bytes | None, message: str, prepared: Path, tmp_path: Path) -> None:
    source = published(tmp_path / "upstream", contents(FINE[:3], UNIVERSE[3:]), hashes=False)
    if content is not None:
        (tmp_path / "fetched/a").mkdir(parents=True)
        (tmp_path / "fetched/a/labeled.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        install("mine", source, FILES, PROTOCOL, 3,
                folder=tmp_path / "fetched", prepared=prepared, target=tmp_path / "split")  # fmt: skip


def test_check_knows_what_was_published(prepared: Path, tmp_path: Path) -> None:
    """A split that is edited together with its manifest's own hashes is no longer the published one."""
    split = make(published(tmp_path / "upstream", contents(FINE[:3], UNIVERSE[3:])), tmp_path)
    write_ids(split / "labeled.txt", [*FINE[:2], FINE[3]])
    write_ids(split / "unlabeled.txt", [FINE[2], *UNIVERSE[4:]])
    manifest = read_json(split / "manifest.json")
    own = {n: hashlib.sha256((split / f"{n}.txt").read_bytes()).hexdigest() for n in ("labeled", "unlabeled", "val")}
    write_json(split / "manifest.json", manifest | {"sha256": own})
    with pytest.raises(UserError, match="as published"):
        check(split, prepared)


# ---------------------------------------------------------------------------------------------------------- params


def edit(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value))


LABELLED = "data/splits/pascal/92/labeled.txt"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v["u2pl"]["sha256"].pop(LABELLED), f"u2pl: found .*sha256 of {LABELLED}"),
        (lambda v: v["u2pl"]["sha256"][LABELLED].update(file="12"), "u2pl.sha256.*file: found '12'"),
        (lambda v: v["u2pl"].update(comit="12"), "u2pl.comit: found an unknown key, expected 'commit'"),
        (lambda v: v["cps"]["lists"].update(blender={}), "cps.lists.blender: found no such protocol"),
        (lambda v: v["u2pl"]["lists"]["cityscapes"]["1/2"].update(labelled="../x.txt"), "u2pl.* found '../x.txt'"),
        (lambda v: v["u2pl"]["lists"]["pascal_classic"].pop("1/4"), "u2pl.* no list of 8 .*one of 1/16"),
    ],
)
def test_a_mistake_in_params_is_named(change, named: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shutil.copytree(ROOT / "params", tmp_path / "params")
    edit(tmp_path / "params/splits.yaml", change)
    # A table on the classic protocol that wants the authors' lists.
    edit(tmp_path / "params/tables/table1.yaml", lambda v: v["rows"][-1].update(overrides={"split_source": "u2pl"}))
    with pytest.raises(UserError, match="splits.yaml: " + named) as caught:
        load_suite("demo", tmp_path)
    assert "\n" not in str(caught.value)


def test_exit_code_2_and_one_line(pascal: Path, tmp_path: Path) -> None:
    """A list of images that are not in the prepared data, by the command line."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    data = tmp_path / "data/demo"
    shutil.copytree(pascal, data / "pascal")
    suite = load_suite("demo", ROOT)
    names, counts = [label.name for label in suite.datasets["pascal"].classes], suite.datasets["pascal"].counts
    manifest = read_json(pascal / "manifest.json") | {"classes": names, "counts": counts}
    write_json(data / "pascal/manifest.json", manifest)
    files, n = (
        suite.published["u2pl"].lists["pascal_blender"]["1/16"],
        suite.protocols["pascal_blender"].fractions["1/16"],
    )
    for path in (files.labelled, files.unlabelled):
        assert path is not None
        (data / "lists/u2pl" / path).parent.mkdir(parents=True, exist_ok=True)
        (data / "lists/u2pl" / path).write_text("\n".join(f"2007_{i:06d}" for i in range(1, n + 1)))
    command = [sys.executable, "-m", "u2pl", "data", "split", "pascal_blender", str(n), "--source", "u2pl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "unknown image 2007_000001" in done.stderr
    done = subprocess.run([*command[:-1], "cpss"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "u2pl: params/splits.yaml: found 'cpss', expected 'cps'\n")


# ---------------------------------------------------------------------------------------------------- demo's mirror


@pytest.mark.parametrize("name", ["pascal_classic", "pascal_blender", "cityscapes"])
@pytest.mark.parametrize("source", ["u2pl", "cps"])
def test_a_drawn_mirror_goes_the_published_way(source: str, name: str, tmp_path: Path) -> None:
    suite = load_suite("demo", ROOT)
    protocol, upstream = suite.protocols[name], suite.published[source]
    kind = suite.datasets[protocol.dataset].kind
    fine = [f"{'2008' if kind == 'pascal' else 'aachen'}_{i:06d}_000019" for i in range(48 if kind != "pascal" else 32)]
    extra = [f"2010_{i:06d}" for i in range(32)] if kind == "pascal" else []
    lists = {"train": fine, "train_aug": fine + extra, "val": ["2007_000001"]}
    prepared = prepared_folder(tmp_path / "prepared", lists)
    labelled = {}
    for attempt in ("a", "b"):
        target = tmp_path / attempt
        mirror(source, name, upstream.lists[name], protocol, kind, prepared=prepared, target=target)
        local = upstream.model_copy(update={"url": target.as_uri()})
        for fraction, files in upstream.lists[name].items():
            n, split = protocol.fractions[fraction], tmp_path / f"{attempt}-split" / fraction.replace("/", "-")
            for path in (files.labelled, files.unlabelled):
                if path is not None:
                    fetch(archive(local, path), target / "fetched" / path)
            install(source, local, files, protocol, n, folder=target / "fetched", prepared=prepared, target=split)
            labelled[attempt, fraction] = set((split / "labeled.txt").read_text().split())
            assert len(labelled[attempt, fraction]) == n
    assert all(labelled["a", fraction] == labelled["b", fraction] for fraction in upstream.lists[name])
    if (source, name) == ("u2pl", "pascal_blender"):
        # as in the published ones, fine images come first: all of a small list, and all 48 in a larger one
        sizes = {f: min(n, len(fine)) for f, n in protocol.fractions.items()}
        assert {f: len(labelled["a", f] & set(fine)) for f in sizes} == sizes
    if (source, name) == ("cps", "pascal_blender"):
        assert 0 < len(labelled["a", "1/2"] & set(fine)) < 32


# ------------------------------------------------------------------------------------------------------- real lists


def real_splits(root: Path) -> None:
    """Every published list at the paper's scale: fetched from the copies, verified, and made into splits."""
    suite = load_suite("paper", ROOT)

    def copy(path: str) -> Path:
        folder = next(f for f in COPIES if path.startswith(f))
        return LISTS / (COPIES[folder] + path[len(folder) :])

    def ids(path: str) -> list[str]:
        return parse(copy(path).read_text(), path)

    for dataset, folder, n in (("pascal", "data/splits/pascal", 1464), ("cityscapes", "data/splits/cityscapes", 1488)):
        labelled, val = ids(f"{folder}/{n}/labeled.txt"), ids(f"{folder}/val.txt")
        universe = labelled + ids(f"{folder}/{n}/unlabeled.txt")
        lists = {"train": labelled if dataset == "pascal" else universe, "train_aug": universe, "val": val}
        prepared_folder(root / dataset, lists)
    for source, upstream in suite.published.items():
        for name, fractions in upstream.lists.items():
            protocol = suite.protocols[name]
            for fraction in fractions:
                labelled_count = protocol.fractions[fraction]
                files = published_list(suite, source, name, labelled_count)
                assert files == fractions[fraction]
                for path in (files.labelled, files.unlabelled):
                    if path is not None:
                        declared = archive(upstream, path)
                        assert declared.sha256 is not None and len(declared.sha256) == 64
                        assert upstream.commit in declared.url and declared.url.endswith(f"/{path}")
                        local = declared.model_copy(update={"url": copy(path).as_uri()})
                        fetch(local, root / "lists" / source / path)
                target = root / "splits" / name / source / str(labelled_count)
                install(source, upstream, files, protocol, labelled_count,
                        folder=root / "lists" / source, prepared=root / protocol.dataset, target=target)  # fmt: skip
                check(target, root / protocol.dataset)


@pytest.mark.skipif(not (LISTS / "splits_cps").is_dir(), reason="no copies of the published lists (U2PL_REAL_DATA)")
def test_the_real_lists(tmp_path: Path) -> None:
    """The counts are facts about the lists: 100 % fine in u2pl's two small blender lists, few in CPS's."""
    from u2pl.data.splits.audit import audit_splits

    real_splits(tmp_path)
    audits = {(a.protocol, a.source, a.labelled): a for a in audit_splits(tmp_path)}
    assert len(audits) == 13 + 12
    for source, fine in (("u2pl", [662, 1323, 1464, 1464]), ("cps", [93, 193, 388, 742])):
        blender = [audits["pascal_blender", source, n] for n in (662, 1323, 2646, 5291)]
        assert [a.fine for a in blender] == fine
        assert [a.unlabelled for a in blender] == [9920, 9259, 7936, 5291]
    classic = [audits["pascal_classic", "cps", n] for n in (92, 183, 366, 732)]
    assert [a.unlabelled for a in classic] == [10490, 10399, 10216, 9850]
    # The classic lists are the same images but for 1/2; of the Cityscapes lists 8 of 186 are.
    shared = {n: audits["pascal_classic", "cps", n].overlap["u2pl"] for n in (92, 183, 366, 732)}
    assert {n: shared[n] for n in (92, 183, 366)} == {92: 92, 183: 183, 366: 366} and shared[732] < 732
    assert audits["cityscapes", "u2pl", 186].overlap["cps"] == 8
    assert audits["cityscapes", "u2pl", 186].fine == 186
    assert not any(a.pixels for a in audits.values()), "no masks, no frequencies"
