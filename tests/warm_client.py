"""The client of warm_python.py: hands a command over and waits, or becomes the ordinary Python.

Run by `python -I -S`, so that it starts in hundredths of a second; imports little for that.
"""

import json
import os
import signal
import socket
import sys

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def kind_and_rest(arguments: list) -> list | None:
    """[`-m`, `-c` or `script`, what is run, its arguments], or None for other options."""
    while arguments[:1] == ["-u"]:  # output is flushed with each line anyway
        arguments = arguments[1:]
    if len(arguments) > 1 and arguments[0] in ("-m", "-c"):
        return arguments
    if arguments and not arguments[0].startswith("-"):
        return ["script", *arguments]
    return None


def main() -> None:
    """Run the command of the arguments: [python, address, *arguments of python]."""
    python, address, *arguments = sys.argv[1:]
    command = kind_and_rest(arguments)
    server = socket.socket(socket.AF_UNIX)
    if command is None or server.connect_ex(address) != 0:
        os.execv(python, [python, *arguments])
    request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
    answers = server.makefile()
    pid = int(answers.readline() or 0)
    if pid == 0:  # it must be imported anew
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.execv(python, [python, *arguments])
    for number in FORWARDED:
        signal.signal(number, lambda received, _: os.kill(pid, received))
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    status = int(answers.readline() or -signal.SIGKILL)
    if status < 0:  # a signal ended it: the same ends this process
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
