"""Synthetic archives and prepared folders, made once a session; a faulty web server and a small disk."""

import http.server
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from u2pl.data.prepare import prepare
from u2pl.data.synthetic.archives import synthesize
from u2pl.experiments.schema import Archive, ClassLabel, Dataset, Evaluation

FILES = {
    "pascal": {"voc": "VOCtrainval_11-May-2012.tar", "sbd": "benchmark.tgz"},
    "cityscapes": {"images": "leftImg8bit_trainvaltest.zip", "labels": "gtFine_trainvaltest.zip"},
}
COUNTS = {"pascal": {"train": 6, "train_aug": 10, "val": 4}, "cityscapes": {"train": 5, "val": 3}}
SIZE = (48, 64)


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    def make(kind: str, counts: dict[str, int] | None = None, **changes: Any) -> Dataset:
        classes = [ClassLabel(name=f"c{i}", colour=(i, i, i)) for i in range({"pascal": 21, "cityscapes": 19}[kind])]
        fields: dict[str, Any] = {
            "kind": kind, "classes": classes, "mean": (124, 116, 104), "std": (58, 57, 57),
            "archives": {key: Archive(file=file, url="") for key, file in FILES[kind].items()},
            "counts": COUNTS[kind] if counts is None else counts,
            "evaluation": Evaluation(mode="centre_crop", crop=33),
        }  # fmt: skip
        return Dataset(**(fields | changes))

    return make


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four synthetic archives; do not write here."""
    folder = tmp_path_factory.mktemp("archives")
    synthesize("pascal", folder, seed=3, train=6, extra=4, val=4, size=SIZE)
    synthesize("cityscapes", folder, seed=3, train=5, extra=0, val=3, size=SIZE)
    return folder


@pytest.fixture(scope="session")
def pascal(archives: Path, make_dataset: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared Pascal folder; do not write here."""
    folder = tmp_path_factory.mktemp("prepared") / "pascal"
    prepare(make_dataset("pascal"), archives, folder, 2)
    return folder


class Upstream:
    """A web server on this machine. `faults` of a path are used up, one a request; then it serves `files`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.faults: dict[str, list[Callable[[Any], None]]] = {}
        self.seen: list[dict[str, str]] = []  # the headers of each request, and its path
        self.stalling, self.go_on = threading.Event(), threading.Event()
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                upstream.seen.append(dict(self.headers) | {"path": self.path})
                faults = upstream.faults.get(path, [])
                if faults:
                    faults.pop(0)(self)
                elif path in upstream.files:
                    upstream.serve(self, path)
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, handler: Any, path: str, ranges: bool = True) -> None:
        """The file, or the part of it that a range asks for, as RFC 9110 has it."""
        content, etag = self.files[path], self.etags.get(path)
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if asked and ranges and handler.headers.get("If-Range") in (None, etag):
            start = int(asked[1])
            if start >= len(content):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            content = content[start:]
        else:
            handler.send_response(200)
        if etag:
            handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def short(self, path: str, count: int, stall: bool = False) -> Callable[[Any], None]:
        """`count` bytes of what is announced, then the end of the connection, or nothing until `go_on`."""

        def fault(handler: Any) -> None:
            write, left = handler.wfile.write, count

            def limited(block: bytes) -> None:
                nonlocal left
                write(block[:left])
                left -= len(block[:left])

            def after_headers() -> None:
                end()
                handler.wfile.write = limited

            end, handler.end_headers = handler.end_headers, after_headers
            self.serve(handler, path)
            handler.wfile.write = write
            if stall:
                handler.wfile.flush()
                self.stalling.set()
                self.go_on.wait(60)

        return fault


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    with made.server:
        threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.go_on.set()
        made.server.shutdown()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system at the folder it returns, with the given options; called again, it changes the options."""
    folder = tmp_path / "disk"

    def mount(options: str) -> Path:
        again = "remount," if folder.is_mount() else ""
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no small file system can be mounted here (that needs root)")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)
