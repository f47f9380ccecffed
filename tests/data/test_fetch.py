"""Fetching against a web server of our own that breaks in every way that is known of others."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torchvision
from torchvision.datasets.sbd import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from u2pl.addresses import public
from u2pl.data.sources.fetch import fetch, fetched_sha256, manifest_of
from u2pl.data.sources.http import Network
from u2pl.errors import UserError
from u2pl.experiments import load_suite
from u2pl.experiments.schema import Archive
from u2pl.files import read_json

ROOT = Path(__file__).parents[2]
CONTENT = random.Random(0).randbytes(300_000)
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()
HASTY = Network(timeout=30, attempts=3, wait=0)


@pytest.fixture
def good(upstream: Any) -> Any:
    upstream.files["/a"], upstream.etags["/a"] = CONTENT, '"one"'
    return upstream


def archive(upstream: Any, path: str = "/a", **changes: Any) -> Archive:
    return Archive(**({"file": "a", "url": upstream.url + path, "md5": MD5} | changes))


def status(code: int, **headers: str) -> Callable[[Any], None]:
    def fault(handler: Any) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return fault


def names(folder: Path) -> set[str]:
    """The files in the folder, but for the record of a verification."""
    return {path.name for path in folder.iterdir() if path.suffix != ".verified"} if folder.exists() else set()


def ranges(upstream: Any) -> list[str | None]:
    return [request.get("Range") for request in upstream.seen]


def interrupted(upstream: Any, target: Path, count: int = 100_000, **changes: Any) -> None:
    """A partial file of `count` bytes, as a broken connection and a server that then goes away leave it."""
    upstream.faults["/a"] = [upstream.short("/a", count), status(404)]
    with pytest.raises(UserError, match="HTTP 404"):
        fetch(archive(upstream, **changes), target, HASTY)
    assert names(target.parent) == {"a.part", "a.part.json"}
    assert (target.parent / "a.part").stat().st_size == count
    upstream.seen.clear()


def test_a_file_and_its_manifest(good: Any, tmp_path: Path) -> None:
    fetch(archive(good, sha256=SHA256.upper()), tmp_path / "new" / "a", HASTY)
    assert (tmp_path / "new" / "a").read_bytes() == CONTENT
    assert names(tmp_path / "new") == {"a", "a.json"}
    assert read_json(tmp_path / "new" / "a.json") == {
        "file": "a", "size": len(CONTENT), "md5": MD5, "sha256": SHA256, "source": good.url + "/a",
    }  # fmt: skip


def test_the_first_digits_of_a_hash_suffice(good: Any, tmp_path: Path) -> None:
    """Upstream's weights carry the first eight digits of their SHA-256 in their names."""
    fetch(archive(good, md5=None, sha256=SHA256[:8]), tmp_path / "a", HASTY)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_redirections(good: Any, tmp_path: Path) -> None:
    good.faults["/moved"] = [status(302, Location="/a")]
    fetch(archive(good, "/moved"), tmp_path / "a", HASTY)
    assert (tmp_path / "a").read_bytes() == CONTENT
    good.faults["/round"] = [status(302, Location="/round")] * 99
    with pytest.raises(UserError, match="redirection that leads nowhere"):
        fetch(archive(good, "/round"), tmp_path / "b", HASTY)


def test_a_file_address(tmp_path: Path) -> None:
    (tmp_path / "source #1").write_bytes(CONTENT)
    url = (tmp_path / "source #1").as_uri()
    fetch(Archive(file="a", url=url), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    (tmp_path / "source #1").write_bytes(b"new")  # without a checksum only a new copy is sure to be right
    fetch(Archive(file="a", url=url), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"
    bad_ones = {(tmp_path / "none").as_uri(): "No such file", "file://host/a": "host 'host'", "file:///a%00": "null"}
    for bad, message in bad_ones.items():
        with pytest.raises(UserError, match=message):
            fetch(Archive(file="a", url=bad), tmp_path / "b")


@pytest.mark.parametrize(
    ("path", "sums", "message"),
    [
        ("/a", {"md5": "0" * 32}, f"/a: found md5 {MD5}, expected 0000"),
        ("/a", {"sha256": "0" * 64}, SHA256),
        ("/a", {"md5": None, "sha256": "0" + SHA256[1:8]}, SHA256),
        ("/absent", {}, f"HTTP 404 Not Found, expected the file, or a with md5 {MD5}, put by hand at "),
    ],
)
def test_failures_leave_nothing(good: Any, path: str, sums: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fetch(archive(good, path, **sums), tmp_path / "a", HASTY)
    assert len(good.seen) == 1, "what is wrong for good is not tried again"
    assert names(tmp_path) == set()


def test_unreachable_and_unknown_scheme(good: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Connection refused"):
        fetch(Archive(file="a", url="http://127.0.0.1:9/a"), tmp_path / "a", HASTY)
    for url in ("ftp://host/a", "C:/a", "a"):
        with pytest.raises(UserError, match="scheme"):
            fetch(Archive(file="a", url=url), tmp_path / "a")
    for url in ("http://", "http://[::1", "http:///a"):
        with pytest.raises(UserError, match="found"):
            fetch(Archive(file="a", url=url), tmp_path / "a", HASTY)


def test_a_broken_connection_is_taken_up_where_it_broke(good: Any, tmp_path: Path) -> None:
    good.faults["/a"] = [good.short("/a", 100_000), good.short("/a", 0), status(503), good.short("/a", 50_000)]
    fetch(archive(good), tmp_path / "a", HASTY)
    assert ranges(good) == [None, *["bytes=100000-"] * 3, "bytes=150000-"]
    assert good.seen[1]["If-Range"] == '"one"'
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert names(tmp_path) == {"a", "a.json"}


def test_more_breaks_than_attempts_if_each_brings_something(good: Any, tmp_path: Path) -> None:
    good.faults["/a"] = [good.short("/a", 30_000) for _ in range(9)]
    fetch(archive(good), tmp_path / "a", HASTY)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len(good.seen) == 10
    # Without ranges nothing is gained by them.
    good.seen.clear()
    good.faults["/a"] = [good.short("/a", 30_000) for _ in range(99)]
    good.etags.clear()
    with pytest.raises(UserError, match="broken connection after 30.0 kB"):
        fetch(archive(good, md5=None), tmp_path / "b", HASTY)
    assert len(good.seen) == 2 * HASTY.attempts


def test_a_later_run_goes_on(good: Any, tmp_path: Path) -> None:
    interrupted(good, tmp_path / "a")
    fetch(archive(good), tmp_path / "a", HASTY)
    assert ranges(good) == ["bytes=100000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert names(tmp_path) == {"a", "a.json"}


def test_stopped_after_the_last_byte(good: Any, tmp_path: Path) -> None:
    interrupted(good, tmp_path / "a")
    (tmp_path / "a.part").write_bytes(CONTENT)
    fetch(archive(good), tmp_path / "a", HASTY)
    assert good.seen == []
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_stalled_server(good: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good.faults["/a"] = [good.short("/a", 100_000, stall=True)]
    fetch(archive(good), tmp_path / "a", Network(timeout=2, attempts=3, wait=0))
    assert ranges(good)[:2] == [None, "bytes=100000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert "a: no byte for 2 s after 100.0 kB; again in 0 s" in capsys.readouterr().out


@pytest.mark.parametrize("code", [500, 429])
def test_passing_errors(good: Any, code: int, tmp_path: Path) -> None:
    good.faults["/a"] = [status(code)] * 2
    fetch(archive(good), tmp_path / "a", HASTY)
    assert (tmp_path / "a").read_bytes() == CONTENT
    good.faults["/a"] = [status(code)] * 9
    with pytest.raises(UserError, match=f"HTTP {code}"):
        fetch(archive(good), tmp_path / "b", HASTY)
    assert len(good.faults["/a"]) == 6


def test_a_server_without_ranges(good: Any, tmp_path: Path) -> None:
    interrupted(good, tmp_path / "a")
    good.faults["/a"] = [lambda handler: good.serve(handler, "/a", ranges=False)]
    fetch(archive(good), tmp_path / "a", HASTY)
    assert ranges(good) == ["bytes=100000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_without_lengths(good: Any, tmp_path: Path) -> None:
    def chunked(count: int) -> Callable[[Any], None]:
        def fault(handler: Any) -> None:
            handler.protocol_version = "HTTP/1.1"
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.send_header("Connection", "close")
            handler.end_headers()
            for start in range(0, count, 60_000):
                block = CONTENT[start : start + 60_000]
                handler.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
            if count == len(CONTENT):
                handler.wfile.write(b"0\r\n\r\n")

        return fault

    good.faults["/a"] = [chunked(120_000), chunked(len(CONTENT))]
    fetch(archive(good, md5=None), tmp_path / "a", HASTY)
    assert ranges(good) == [None, None], "nothing says that the file is still the same"
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("honest", [True, False])
def test_the_file_changed_in_between(good: Any, honest: bool, tmp_path: Path) -> None:
    """A changed file is begun anew, whether the server honours If-Range or not."""
    interrupted(good, tmp_path / "a", md5=None)
    new = CONTENT[::-1] + b"more"
    good.files["/a"], good.etags["/a"] = new, '"two"'
    if not honest:
        good.faults["/a"] = [status(206, **{"Content-Range": f"bytes 100000-{len(new) - 1}/{len(new)}"})]
    fetch(archive(good, md5=None), tmp_path / "a", HASTY)
    assert ranges(good) == ["bytes=100000-", None][: 1 if honest else 2]
    assert (tmp_path / "a").read_bytes() == new


def test_the_file_shrank_in_between(good: Any, tmp_path: Path) -> None:
    interrupted(good, tmp_path / "a", md5=None)
    good.files["/a"] = CONTENT[:50]
    fetch(archive(good, md5=None), tmp_path / "a", HASTY)
    assert ranges(good) == ["bytes=100000-", None], "416 first"
    assert (tmp_path / "a").read_bytes() == CONTENT[:50]


def test_a_wrong_checksum_after_a_resume_starts_over_once(good: Any, tmp_path: Path) -> None:
    interrupted(good, tmp_path / "a")
    (tmp_path / "a.part").write_bytes(bytes(100_000))
    fetch(archive(good), tmp_path / "a", HASTY)
    assert ranges(good) == ["bytes=100000-", None]
    assert (tmp_path / "a").read_bytes() == CONTENT
    interrupted_again = tmp_path / "again" / "a"
    interrupted(good, interrupted_again)
    good.files["/a"] = CONTENT[::-1]  # with the old ETag
    with pytest.raises(UserError, match=f"expected {MD5}"):
        fetch(archive(good), interrupted_again, HASTY)
    assert ranges(good) == ["bytes=100000-", None]
    assert names(interrupted_again.parent) == set()


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"url": 1}'])
def test_a_partial_file_of_unknown_origin_is_not_used(good: Any, note: str, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT[:10])
    (tmp_path / "a.part.json").write_text(note)
    fetch(archive(good), tmp_path / "a", HASTY)
    assert ranges(good) == [None]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_mirrors_in_order(good: Any, tmp_path: Path) -> None:
    good.files["/wrong"] = b"a page that says sorry"
    mirrors = [f"{good.url}{path}" for path in ("/wrong", "/a", "/never")]
    fetch(archive(good, "/absent", mirrors=mirrors), tmp_path / "a", HASTY)
    assert [request["path"] for request in good.seen] == ["/absent", "/wrong", "/a"]
    assert read_json(tmp_path / "a.json")["source"] == mirrors[1]
    with pytest.raises(UserError, match=r"^b: found .*/absent: HTTP 404 .*/wrong: md5 .* instead of .*put by hand"):
        fetch(archive(good, "/absent", file="b", mirrors=mirrors[:1]), tmp_path / "b", HASTY)
    assert names(tmp_path) == {"a", "a.json"}


def test_a_mirror_goes_on_if_a_checksum_can_prove_it(good: Any, tmp_path: Path) -> None:
    good.files["/mirror"], good.etags["/mirror"] = CONTENT, '"another server"'
    for name, md5, expected in (("a", MD5, "bytes=100000-"), ("b", None, None)):
        target = tmp_path / name / "a"
        interrupted(good, target)
        fetch(archive(good, "/mirror", md5=md5), target, HASTY)
        assert ranges(good) == [expected]
        assert "If-Range" not in good.seen[0]
        assert target.read_bytes() == CONTENT


def chain(error: BaseException) -> str:
    """All that a traceback of the error could show."""
    text, left = "", [error]
    while left:
        seen = left.pop()
        text += f"{seen!r} {vars(seen)}"
        left += [other for other in (seen.__cause__, seen.__context__) if other]
    return text


def test_secrets_in_an_address_stay_there(good: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = good.url.removeprefix("http://")
    secret = f"http://somebody:pass-word@{host}/a?token=to-ken#frag-ment"
    good.faults["/a"] = [good.short("/a", 10)]
    fetch(Archive(file="a", url=secret), tmp_path / "a", HASTY)
    assert good.seen[-1]["Authorization"].startswith("Basic ") and good.seen[-1]["path"] == "/a?token=to-ken"
    assert read_json(tmp_path / "a.json")["source"] == f"http://{host}/a"
    texts = [capsys.readouterr().out, (tmp_path / "a.json").read_text()]
    for fault in (good.short("/a", 0), status(404), status(500), status(302, Location="/a?token=to-ken")):
        good.faults["/a"] = [fault] * 99
        with pytest.raises(UserError) as caught:
            fetch(Archive(file="b", url=secret, mirrors=[secret]), tmp_path / "b", HASTY)
        texts += [chain(caught.value), capsys.readouterr().out]
    texts += [path.read_text() for path in tmp_path.glob("b.part*")]
    texts += [Archive(file="a", url=secret, mirrors=[secret]).model_dump_json()]  # as in run.json
    for url in (secret.replace(host, "127.0.0.1:9"), secret.replace("http:", "ftp:"), secret.replace(host, "[::1")):
        with pytest.raises(UserError) as caught:
            fetch(Archive(file="c", url=url), tmp_path / "c", HASTY)
        texts.append(chain(caught.value))
    assert not [text for text in texts for word in ("somebody", "pass-word", "to-ken", "frag-ment") if word in text]


def test_public_addresses() -> None:
    assert public("https://u:p@host:1/a/b?c#d") == "https://host:1/a/b"
    assert public("https://u:p/@host/a") == "https://host/a", "a slash in a password, which should have been %2F"
    assert public("file:data/demo/a.tar") == "file:data/demo/a.tar"
    assert public("cityscapes:a.zip") == "cityscapes:a.zip"


def test_too_little_disk(good: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [150_000]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with pytest.raises(UserError, match="found 150.0 kB of free disk, expected the 300.0 kB"):
        fetch(archive(good), tmp_path / "a", HASTY)
    assert not (tmp_path / "a.part").exists(), "said before anything is written"
    (tmp_path / "source").write_bytes(CONTENT)
    with pytest.raises(UserError, match="free disk"):
        fetch(Archive(file="b", url=(tmp_path / "source").as_uri()), tmp_path / "b")
    free[0] = 300_000
    interrupted(good, tmp_path / "c" / "a")
    free[0] = 200_000  # as much as is still to come
    fetch(archive(good), tmp_path / "c" / "a", HASTY)


def test_a_fetched_file_is_kept_and_a_changed_one_replaced(good: Any, tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(CONTENT)
    fetch(archive(good, "/absent"), target, HASTY)  # nothing to transfer
    assert good.seen == []
    target.write_bytes(b"damaged")
    fetch(archive(good), target, HASTY)
    assert target.read_bytes() == CONTENT


def test_an_untouched_file_is_not_read_again(good: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    fetch(archive(good), target, HASTY)
    with monkeypatch.context() as patch:
        patch.setattr("u2pl.data.sources.fetch.hashlib", None)
        fetch(archive(good), target, HASTY)
        fetch(archive(good, "/absent", mirrors=["file:none"]), target, HASTY)
        assert fetched_sha256(target) == SHA256
    with pytest.raises(UserError, match="HTTP 404"):
        fetch(archive(good, "/absent", md5="0" * 32), target, HASTY)  # another checksum is asked for
    # Equal size and date do not hide a change.
    stat = target.stat()
    while target.stat().st_ctime_ns == stat.st_ctime_ns:  # the clock of files ticks slowly
        target.write_bytes(CONTENT[::-1])
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=f"expected {SHA256} as fetched"):
        fetched_sha256(target)
    assert not manifest_of(target).exists(), "so that the workflow fetches again"
    fetch(archive(good), target, HASTY)
    assert fetched_sha256(target) == SHA256
    target.unlink()
    with pytest.raises(UserError, match="no file"):
        fetched_sha256(target)
    assert not manifest_of(target).exists()


def test_an_archive_altered_in_a_copy_of_the_folder_is_noticed(good: Any, tmp_path: Path) -> None:
    """`cp -r` gives the copied manifest a date after the altered archive's."""
    fetch(archive(good), tmp_path / "one" / "a", HASTY)
    for copy, damage in (("two", b"\1"), ("three", b"")):
        shutil.copytree(tmp_path / "one", tmp_path / copy)
        target = tmp_path / copy / "a"
        target.write_bytes(CONTENT[:-1] + (damage or CONTENT[-1:]))
        os.utime(target, (0, 0))
        os.utime(manifest_of(target))
        if damage:
            with pytest.raises(UserError, match=f"expected {SHA256} as fetched"):
                fetched_sha256(target)
        else:
            assert fetched_sha256(target) == SHA256


def test_a_file_that_changes_while_it_is_read_is_not_certified(
    good: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    target.write_bytes(CONTENT)
    original = hashlib.md5

    def meddling(**arguments: Any) -> Any:
        target.write_bytes(CONTENT + b"more")
        return original(**arguments)

    monkeypatch.setattr(hashlib, "md5", meddling)
    with pytest.raises(UserError, match="a file that changed while it was read"):
        fetch(archive(good), target, HASTY)
    assert not manifest_of(target).exists()


@pytest.mark.parametrize("offline", ["0", "1"])
def test_another_file_at_the_archives_path_is_named_and_kept(
    offline: str, good: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says that it is ours: it may be the only copy of somebody's work."""
    monkeypatch.setenv("U2PL_OFFLINE", offline)
    target = tmp_path / "a"
    target.write_bytes(b"somebody's own")
    found = hashlib.md5(b"somebody's own").hexdigest()
    with pytest.raises(UserError, match=f"{target}: found md5 {found}, expected {MD5}, or no file: move away"):
        fetch(archive(good), target, HASTY)
    assert target.read_bytes() == b"somebody's own" and good.seen == [] and names(tmp_path) == {"a"}


def test_offline_a_damaged_file_is_named(good: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    fetch(archive(good), target, HASTY)
    target.write_bytes(b"damaged")
    monkeypatch.setenv("U2PL_OFFLINE", "1")
    damaged = hashlib.md5(b"damaged").hexdigest()
    with pytest.raises(UserError, match=f"found U2PL_OFFLINE, so no network, and at {target} md5 {damaged}, expected"):
        fetch(archive(good), target, HASTY)


def test_a_file_put_there_by_hand_is_checked_against_the_declared_sums(tmp_path: Path) -> None:
    """Without a fetch there is no manifest, and nothing but params to compare with."""
    target = tmp_path / "a"
    target.write_bytes(CONTENT)
    assert fetched_sha256(target, Archive(file="a", url="", md5=MD5)) == SHA256
    target.write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match=f"found md5 .*, expected {MD5}"):
        fetched_sha256(target, Archive(file="a", url="", md5=MD5))
    assert fetched_sha256(target) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_a_source_that_changes_while_it_is_copied_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)

    def meddling(*_: object) -> None:
        source.write_bytes(CONTENT[::-1])

    monkeypatch.setattr("u2pl.data.sources.http.check_space", meddling)
    with pytest.raises(UserError, match="changed while it was copied"):
        fetch(Archive(file="a", url=source.as_uri()), tmp_path / "new" / "a", HASTY)
    assert not (tmp_path / "new" / "a").exists()


def test_a_servers_words_do_not_reach_the_terminal(good: Any, tmp_path: Path) -> None:
    def fault(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.0 404 \x1b[2J\x1b]0;owned\x07\r\n\r\n")

    good.faults["/a"] = [fault]
    with pytest.raises(UserError, match="HTTP 404 Not Found") as caught:
        fetch(archive(good), tmp_path / "a", HASTY)
    assert "owned" not in str(caught.value) and str(caught.value).isprintable()
    good.faults["/a"] = [status(599)] * 9
    with pytest.raises(UserError, match="found HTTP 599, expected"):
        fetch(archive(good), tmp_path / "a", HASTY)


@pytest.mark.parametrize("text", ["", "[]", '{"file": "a", "size": 300000}'])
def test_a_manifest_that_is_none_is_written_anew(good: Any, text: str, tmp_path: Path) -> None:
    fetch(archive(good), tmp_path / "a", HASTY)
    whole = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text)
    assert fetched_sha256(tmp_path / "a") == SHA256
    fetch(archive(good, "/absent"), tmp_path / "a", HASTY)
    assert read_json(tmp_path / "a.json") == json.loads(whole) | {"source": None}


def test_the_user_brings_the_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(UserError, match=f"no file and no address, expected a with md5 {MD5}, put by hand at {target}"):
        fetch(Archive(file="a", url="", md5=MD5), target)
    target.write_bytes(CONTENT)
    (tmp_path / "a.part").write_bytes(b"of an earlier try")
    fetch(Archive(file="a", url="", md5=MD5), target)
    assert names(tmp_path) == {"a", "a.json"}
    assert read_json(tmp_path / "a.json")["source"] is None
    for url in ("", "cityscapes:a"):
        with pytest.raises(UserError, match=MD5):
            fetch(Archive(file="a", url=url, md5="0" * 32), target)
        assert target.exists(), "the user's own file is not ours to delete"


def test_offline(good: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("U2PL_OFFLINE", "1")
    target = tmp_path / "a"
    with pytest.raises(UserError) as caught:
        fetch(archive(good, sha256=SHA256), target, HASTY)
    assert str(caught.value) == (
        f"{good.url}/a: found U2PL_OFFLINE, so no network, "
        f"expected a with md5 {MD5} and sha256 {SHA256}, put by hand at {target}"
    )
    assert good.seen == [] and names(tmp_path) == set()
    (tmp_path / "copy").write_bytes(CONTENT)
    fetch(archive(good, mirrors=[(tmp_path / "copy").as_uri()]), target, HASTY)  # a local mirror is no network
    fetch(archive(good, md5=None), target, HASTY)  # unverified, but all there is
    assert good.seen == []
    monkeypatch.setenv("U2PL_OFFLINE", "0")
    fetch(archive(good), tmp_path / "b", HASTY)


def test_progress_in_a_log(good: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(archive(good), tmp_path / "a", HASTY)
    assert capsys.readouterr().out.startswith("a: 300.0 kB of 300.0 kB, ")
    fetch(archive(good), tmp_path / "b", Network(report=0))
    assert capsys.readouterr().out.count("\n") > 1


def test_a_change_of_addresses_is_no_change_of_the_file() -> None:
    one = Archive(file="a", url="http://host/a", md5=MD5)
    other = Archive(file="a", url="http://other/a", mirrors=["http://host/a"], md5=MD5.upper())
    assert one.identity == other.identity != one.model_copy(update={"md5": "0" * 32}).identity
    bare = [Archive(file="a", url=url) for url in ("file:a", "file:b", "http://u:pw@host/a")]
    assert len({each.identity for each in bare}) == 3 and "pw" not in bare[2].identity


def test_sources_are_those_that_torchvision_publishes() -> None:
    suite = load_suite("paper", ROOT)
    voc, sbd = (suite.datasets["pascal"].archives[key] for key in ("voc", "sbd"))
    theirs = DATASET_YEAR_DICT["2012"]
    assert (voc.file, voc.url, voc.md5) == (theirs["filename"], theirs["url"], theirs["md5"])
    assert (sbd.file, sbd.url, sbd.md5) == (SBDataset.filename, SBDataset.url, SBDataset.md5)
    published = [
        weights.url
        for name in torchvision.models.list_models(module=torchvision.models)
        for weights in torchvision.models.get_model_weights(name)
    ]
    weights = [archive for archive in suite.weights.values() if archive.url]
    assert weights
    for archive in weights:
        assert archive.url in published
        assert archive.url.endswith(f"/{archive.file}") and archive.file.endswith(f"-{archive.sha256}.pth")
