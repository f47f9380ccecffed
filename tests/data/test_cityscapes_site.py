"""The Cityscapes site, played by a server on this machine that cityscapesscripts' own downloader can use."""

import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import appdirs
import pytest
import requests
from cityscapesscripts.download import downloader

from u2pl.data.sources.fetch import fetch
from u2pl.data.sources.http import Network
from u2pl.errors import UserError
from u2pl.experiments.schema import Archive
from u2pl.files import read_json

CONTENT = bytes(range(256)) * 100
MD5 = hashlib.md5(CONTENT).hexdigest()
USER, PASSWORD = "some-body", "pass-word"
HASTY = Network(timeout=30, attempts=2, wait=0)
PACKAGE = Archive(file="gtFine_trainvaltest.zip", url="cityscapes:gtFine_trainvaltest.zip")


class Site(http.server.BaseHTTPRequestHandler):
    broken: list[int]  # statuses to answer with first
    seen: list[str]
    md5: str

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if form == {"username": [USER], "password": [PASSWORD], "submit": ["Login"]}:
            self.answer(302, Location="/", Set_Cookie="session=se-cret")
        else:
            self.answer(200, b"<html>Login</html>")

    def do_GET(self) -> None:
        self.seen.append(self.path)
        if self.broken:
            self.answer(self.broken.pop())
        elif self.path == "/login":
            self.answer(200, b"<html>Login</html>")
        elif self.headers["Cookie"] != "session=se-cret":
            self.answer(302, Location="/login")
        elif self.path == "/downloads/?list":
            packages = [{"name": PACKAGE.file, "packageID": "1", "size": "241MB", "thirdparty": "0"}]
            self.answer(200, json.dumps(packages).encode())
        elif self.path == "/md5-sum/?packageID=1":
            self.answer(200, f"{self.md5}  {PACKAGE.file}\n".encode())
        elif self.path == "/file-handling/?packageID=1":
            self.answer(200, CONTENT)
        else:
            self.answer(404)

    def log_message(self, *_: object) -> None:
        pass


class Rerouted(requests.adapters.HTTPAdapter):
    """Sends what is meant for the site to a server on this machine."""

    address = ""

    def send(self, request: Any, *args: Any, **settings: Any) -> Any:
        local = request.copy()
        local.url = request.url.replace("https://www.cityscapes-dataset.com", self.address)
        answer = super().send(local, *args, **settings)
        answer.url = request.url
        return answer


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Site]]:
    class Fresh(Site):
        broken: list[int] = []
        seen: list[str] = []
        md5 = MD5

    make = requests.Session.__init__

    def made(session: requests.Session) -> None:
        make(session)
        session.mount("https://", Rerouted())

    monkeypatch.setattr(requests.Session, "__init__", made)
    monkeypatch.setattr(appdirs, "user_data_dir", lambda *_: str(tmp_path / "user"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    for name in ("CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fresh) as running:
        monkeypatch.setattr(Rerouted, "address", f"http://127.0.0.1:{running.server_address[1]}")
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Fresh
        running.shutdown()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYSCAPES_USERNAME", USER)
    monkeypatch.setenv("CITYSCAPES_PASSWORD", PASSWORD)


def store(folder: Path, content: str) -> Path:
    (folder / "user").mkdir()
    path = folder / "user" / "credentials.json"
    path.write_text(content)
    return path


def test_the_site_is_like_the_one_that_its_own_tool_knows(site: Any, tmp_path: Path) -> None:
    store(tmp_path, json.dumps({"username": USER, "password": PASSWORD}))
    session = downloader.login()
    downloader.download_packages(session=session, package_names=[PACKAGE.file], destination_path=str(tmp_path))
    assert (tmp_path / PACKAGE.file).read_bytes() == CONTENT
    tool = list(site.seen)
    site.seen.clear()
    fetch(PACKAGE, tmp_path / "ours" / PACKAGE.file, HASTY)
    assert site.seen == tool, "we visit the pages that the tool visits"


def test_with_variables(site: Any, account: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.broken = [503]
    fetch(PACKAGE, tmp_path / PACKAGE.file, HASTY)
    assert (tmp_path / PACKAGE.file).read_bytes() == CONTENT
    manifest = tmp_path / f"{PACKAGE.file}.json"
    assert read_json(manifest)["source"] == PACKAGE.url
    text = manifest.read_text() + "".join(capsys.readouterr())
    assert not [word for word in (USER, PASSWORD, "se-cret") if word in text]


def test_with_stored_credentials(site: Any, tmp_path: Path) -> None:
    path = store(tmp_path, json.dumps({"username": USER, "password": PASSWORD}))
    fetch(PACKAGE, tmp_path / PACKAGE.file, HASTY)
    assert (tmp_path / PACKAGE.file).read_bytes() == CONTENT
    path.write_text(json.dumps({"username": USER, "password": "wrong-one"}))
    with pytest.raises(UserError, match="refused"):
        fetch(PACKAGE, tmp_path / "b", HASTY)
    assert path.exists(), "whoever stored them may correct them"
    path.write_text(f'{{"username": "{USER}", "password": "{PASSWORD}"')
    with pytest.raises(UserError, match="csDownload stores") as caught:
        fetch(PACKAGE, tmp_path / "b", HASTY)
    assert caught.value.__context__ is None, "the parser's error holds the file's text"


def test_without_an_account_nobody_is_asked(site: Any, tmp_path: Path) -> None:
    target = tmp_path / PACKAGE.file
    with pytest.raises(UserError) as caught:
        fetch(PACKAGE, target, HASTY)
    assert site.seen == []
    for part in ("CITYSCAPES_USERNAME", "CITYSCAPES_PASSWORD", "csDownload", f"put by hand at {target}"):
        assert part in str(caught.value)
    target.write_bytes(CONTENT)
    fetch(PACKAGE, target, HASTY)
    assert site.seen == []
    assert read_json(tmp_path / f"{PACKAGE.file}.json")["md5"] == MD5


def test_refusals_name_no_secret(
    site: Any, account: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(package: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            fetch(Archive(file="x", url=f"cityscapes:{package}"), tmp_path / "x", HASTY)
        text = str(caught.value) + "".join(capsys.readouterr())
        assert not [word for word in (USER, PASSWORD, "wrong-one", "se-cret") if word in text]
        assert caught.value.__context__ is None
        assert not (tmp_path / "x").exists()

    refused("unknown.zip", "no such package")
    site.broken = [500] * 9
    refused(PACKAGE.file, "HTTP 500 from the site")
    site.broken = [403]
    refused(PACKAGE.file, "HTTP 403 from the site")
    site.broken = []
    site.md5 = "<html>"
    refused(PACKAGE.file, "no MD5")
    site.md5 = "0" * 32
    refused(PACKAGE.file, f"found md5 {MD5}, expected {'0' * 32}")
    monkeypatch.setenv("CITYSCAPES_PASSWORD", "wrong-one")
    refused(PACKAGE.file, "user name or password refused")
    monkeypatch.setattr(Rerouted, "address", "http://127.0.0.1:9")
    refused(PACKAGE.file, "no answer of the site")
