"""Runs commands as forks of one process that has imported everything.

A training of the demo takes less time than the imports before it. The server lives as long as its standard input is
open, that is, as long as the process that started it. Every command is a process of its own, as if a shell had started
it: `u2pl.cli.client` passes streams, signals and exit codes on.
"""

import atexit
import importlib
import json
import os
import pkgutil
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import u2pl
from u2pl.cli.client import FORWARDED

_QUIET = (signal.SIGINT, *FORWARDED)  # for commands only; the server may have them as a member of a process group


def start() -> str | None:
    """Start a server that ends with this process; its socket, None if this machine has no place for one."""
    path = Path(tempfile.mkdtemp(prefix="u2pl-")) / "socket"
    command = [sys.executable, "-m", "u2pl.cli.server", str(path)]
    # NumPy and SciPy start threads when they are imported, which forks do not have.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    atexit.register(process.communicate)  # closes its input and waits for it
    return str(path) if process.stdout.readline() else None


def serve(path: Path, run: Callable[[], None], prepare: Callable[[], None]) -> None:
    """Call `run` in a fork per command that arrives at the socket `path`, until standard input ends.

    prepare: called when the socket is there; commands that arrive meanwhile wait.
    """
    inherited = {number: signal.getsignal(number) for number in _QUIET}
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        try:
            listener.bind(str(path))
            listener.listen(128)
            print("listening", flush=True)
            prepare()
            for number in _QUIET:
                signal.signal(number, signal.SIG_IGN)
            _Server(listener, selector, run, inherited).loop()
        finally:
            shutil.rmtree(path.parent, ignore_errors=True)


class _Server:
    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        run: Callable[[], None],
        inherited: Mapping[signal.Signals, object],
    ) -> None:
        self.listener, self.selector, self.run, self.inherited = listener, selector, run, inherited
        self.commands: dict[int, socket.socket] = {}  # process id -> the client that waits for it
        self.ended, wake = socket.socketpair()
        for end in (self.ended, wake):
            end.setblocking(False)
        self.wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, for the wake-up to be written
        signal.set_wakeup_fd(wake.fileno())

    def loop(self) -> None:
        for source, react in ((self.listener, self._accept), (self.ended, self._reap), (0, self._close)):
            self.selector.register(source, selectors.EVENT_READ, react)
        while self.commands or self.listener.fileno() >= 0:
            for key, _ in self.selector.select():
                key.data()

    def _close(self) -> None:
        """Whoever started the server is gone: no more commands, but those that run may end."""
        if not os.read(0, 1):
            self.selector.unregister(0)
            self.selector.unregister(self.listener)
            self.listener.close()

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        with suppress(OSError, ValueError):  # a client that ended meanwhile
            head, streams, _, _ = socket.recv_fds(connection, 4, 3)
            with connection.makefile("rb") as stream:
                request = json.loads(stream.read(int.from_bytes(head, "big")))
            # Signals wait until the command has the handlers of a new process: the server's would swallow them.
            signal.pthread_sigmask(signal.SIG_BLOCK, _QUIET)
            if (pid := os.fork()) == 0:
                self._command(request, streams)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _QUIET)
            for stream_number in streams:
                os.close(stream_number)
            self.commands[pid] = connection
            self.selector.register(connection, selectors.EVENT_READ, lambda: self._hear(pid, connection))
            return
        connection.close()

    def _hear(self, pid: int, connection: socket.socket) -> None:
        """Signals for a command; its client's end is one, too."""
        try:
            received = connection.recv(16)
        except OSError:
            received = b""
        if not received:
            self.selector.unregister(connection)
        if pid in self.commands:  # not yet reaped, so the number is no other process's
            for number in received or [signal.SIGKILL]:
                os.kill(pid, number)

    def _reap(self) -> None:
        self.ended.recv(4096)
        for pid in list(self.commands):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                connection = self.commands.pop(pid)
                with suppress(KeyError):
                    self.selector.unregister(connection)
                with suppress(OSError), connection:
                    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())

    def _command(self, request: dict[str, object], streams: list[int]) -> NoReturn:
        """The life of a command: nothing of the server's may be left in it, and it may not return there."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self.listener, self.ended, self.wake, *self.commands.values()):
                end.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            os.chdir(str(request["folder"]))
            os.environ.clear()
            os.environ.update(request["environment"])  # type: ignore[call-overload]
            sys.argv[1:] = request["arguments"]  # type: ignore[call-overload]
            for caught, handler in self.inherited.items():
                signal.signal(caught, handler)  # type: ignore[arg-type]
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _QUIET)
            self.run()
            code = 0
        except SystemExit as end_of_command:
            code = _exit_code(end_of_command.code)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _exit_code(code: object) -> int:
    """As Python ends: no code is success, and what is no number is printed."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def import_everything() -> None:
    """Import the suite, what torch imports when the first optimiser is made, and DVCLive when it first writes."""
    for module in pkgutil.walk_packages(u2pl.__path__, "u2pl."):
        if not module.name.endswith("__main__") and module.name != __name__:
            importlib.import_module(module.name)
    for name in ("torch._dynamo", "dvc.repo"):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.argv[0] = "u2pl"

    def _run() -> None:
        from u2pl.cli.main import main

        main()

    serve(Path(sys.argv[1]), _run, import_everything)
