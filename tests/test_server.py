"""Commands that a server runs as forks are, for whoever started them, processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVE = """
import sys
from pathlib import Path
from u2pl.cli.server import serve
serve(Path(sys.argv[1]), lambda: exec(sys.argv[1]), lambda: None)
"""
CLIENT = "from u2pl.cli.client import delegate; delegate(); print('no server')"
Server = subprocess.Popen[str]


def started(socket: Path) -> Server:
    socket.parent.mkdir()
    command = [sys.executable, "-c", SERVE, str(socket)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "listening\n"
    return server


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "d/socket"


@pytest.fixture
def server(socket: Path) -> Iterator[Server]:
    process = started(socket)
    yield process
    process.communicate(timeout=20)
    assert process.returncode == 0


def client(socket: Path, code: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """A process that lets the server at `socket` run `code`."""
    environment = os.environ | {"U2PL_SERVER": str(socket)} | variables
    command = [sys.executable, "-c", CLIENT, code]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def until(condition) -> None:  # type: ignore[no-untyped-def]
    end = time.time() + 20
    while not condition():
        assert time.time() < end
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("server")
def test_streams_folder_environment_and_exit_code_are_the_caller_s(socket: Path, tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['OWN'], 'U2PL_SERVER' in os.environ, input())"
    code += "; print('failed', file=sys.stderr); sys.exit(7)"
    process = client(socket, code, tmp_path, OWN="own")
    assert process.communicate("typed\n", timeout=20) == (f"{tmp_path} own False typed\n", "failed\n")
    assert process.returncode == 7


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("code", "returned", "last"),
    [
        ("pass", 0, ""),
        ("raise SystemExit('a reason')", 1, "a reason"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
        ("import os; os.kill(os.getpid(), 15)", -15, ""),
    ],
)
def test_a_command_ends_its_caller_as_it_ends(
    socket: Path, tmp_path: Path, code: str, returned: int, last: str
) -> None:
    process = client(socket, code, tmp_path)
    _, err = process.communicate(timeout=20)
    assert process.returncode == returned and err.strip().endswith(last)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_that_stops_a_training_reaches_the_command(
    socket: Path, tmp_path: Path, number: signal.Signals
) -> None:
    code = f"import signal, sys, time; signal.signal({int(number)}, lambda *_: sys.exit(75))"
    process = client(socket, code + "; print('waits', flush=True); time.sleep(60)", tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 75


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_dies_with_its_caller(socket: Path, tmp_path: Path, number: signal.Signals) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    process = client(socket, code, tmp_path)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == -number
    until(lambda: not alive(pid))


def test_the_server_ends_with_its_starter_once_commands_have_ended(socket: Path, tmp_path: Path) -> None:
    server = started(socket)
    process = client(socket, "print('runs', flush=True); input(); print('ends')", tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "runs\n"
    assert server.stdin is not None
    server.send_signal(signal.SIGTERM)  # meant for commands of its process group
    server.stdin.close()
    alone = client(socket, "print('not here')", tmp_path)
    until(lambda: not socket.exists() or alone.poll() is not None or server.poll() is not None)
    assert process.communicate("\n", timeout=20)[0] == "ends\n"
    server.wait(timeout=20)
    alone.communicate(timeout=20)
    assert not socket.parent.exists()
    late = client(socket, "print('not here')", tmp_path)
    assert late.communicate(timeout=20)[0] == "no server\n"


@pytest.mark.slow
def test_the_imports_start_no_thread() -> None:
    """A fork has none but the thread that forked: locks that others held would stay locked."""
    code = (
        "import os; from u2pl.cli.server import import_everything as f; f(); print(len(os.listdir('/proc/self/task')))"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # as `start` sets it
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"
