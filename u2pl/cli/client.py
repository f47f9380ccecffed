"""Hands a command to a running server of `u2pl.cli.server`. Imports nothing that takes time to import."""

import json
import os
import signal
import socket
import sys

SERVER = "U2PL_SERVER"  # environment variable: the server's socket
FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # those that stop a training


def delegate() -> None:
    """Let the server run this process's command and exit as the command does; return if there is no server.

    The command gets this process's arguments, environment, working directory, standard streams, and signals of
    FORWARDED. It is killed when this process ends first.
    """
    path = os.environ.pop(SERVER, None)  # not for the command's own children
    if path is None:
        return
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        return
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda received, _: connection.sendall(bytes([received])))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends this process, and with it the command
    request = json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}).encode()
    socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(request)
    answer = connection.makefile("rb").read()
    if not answer:
        sys.exit(f"u2pl: the server at {path} ended before the command")
    code = int(answer)
    if code < 0:  # a signal ended the command: this process ends likewise, for the caller to see
        if -code in FORWARDED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
