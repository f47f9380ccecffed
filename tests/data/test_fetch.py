import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from u2pl.data.fetch import fetch
from u2pl.errors import UserError
from u2pl.experiments.schema import Archive

CONTENT = bytes(range(256)) * 20
MD5, SHA256 = hashlib.md5(CONTENT).hexdigest(), hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif self.path in ("/good", "/short"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT if self.path == "/good" else CONTENT[:100])
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize("path", ["good", "moved"])
def test_http_with_checksums(server: str, path: str, tmp_path: Path) -> None:
    fetch(Archive(file="a", url=f"{server}/{path}", md5=MD5, sha256=SHA256.upper()), tmp_path / "new" / "a")
    assert (tmp_path / "new" / "a").read_bytes() == CONTENT


def test_the_first_digits_of_a_hash_suffice(server: str, tmp_path: Path) -> None:
    """Upstream's weights carry the first eight digits of their SHA-256 in their names."""
    fetch(Archive(file="a", url=f"{server}/good", sha256=SHA256[:8]), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_file_url(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    fetch(Archive(file="a", url=(tmp_path / "source").as_uri()), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "sums", "message"),
    [
        ("good", {"md5": "0" * 32}, MD5),
        ("good", {"md5": MD5, "sha256": "0" * 64}, SHA256),
        ("good", {"sha256": "0" + SHA256[1:8]}, SHA256),
        ("absent", {}, "HTTP 404"),
        ("short", {}, "100 bytes"),
    ],
)
def test_failures_leave_nothing(server: str, path: str, sums: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        fetch(Archive(file="a", url=f"{server}/{path}", **sums), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_unreachable_and_unknown_scheme(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found"):
        fetch(Archive(file="a", url="http://127.0.0.1:9/a"), tmp_path / "a")
    with pytest.raises(UserError, match="ftp"):
        fetch(Archive(file="a", url="ftp://host/a"), tmp_path / "a")
    with pytest.raises(UserError, match="found"):
        fetch(Archive(file="a", url=(tmp_path / "none").as_uri()), tmp_path / "a")


def test_a_fetched_file_is_kept_and_a_changed_one_replaced(server: str, tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(CONTENT)
    fetch(Archive(file="a", url=f"{server}/absent", md5=MD5), target)  # nothing to transfer
    target.write_bytes(b"damaged")
    fetch(Archive(file="a", url=f"{server}/good", md5=MD5), target)
    assert target.read_bytes() == CONTENT


def test_without_url_the_user_brings_the_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(UserError, match="no file"):
        fetch(Archive(file="a", url=""), target)
    target.write_bytes(CONTENT)
    fetch(Archive(file="a", url="", md5=MD5), target)
    with pytest.raises(UserError, match=MD5):
        fetch(Archive(file="a", url="", md5="0" * 32), target)
    assert target.exists(), "the user's own file is not ours to delete"
