"""This file starts the program as a process of its own, without importing torch anew for every start.

A server imports torch and the program once (multiprocessing's forkserver) and forks itself for each start, which then
takes milliseconds. The child runs the script as `__main__`, with its own folder, streams, signals and exit status. Where
the server cannot import something in advance the child does, so that nothing but time depends on it.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deploy import measure  # noqa: E402

SCRIPT = ROOT / "modeling.py"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["programs", "pytest", "modeling", "deploy.use", "torch.distributed"])


def _child(argv: list[str], cwd: str, streams: list[str], environment: dict, file_size: int | None) -> None:
    """What the new process does: it becomes `python argv...` in the folder `cwd`, and ends with that program's status."""
    os.chdir(cwd)
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    if environment.get("PYTHONWARNINGS") == "error":
        warnings.simplefilter("error")
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    measure.timed = measure.timed_files = lambda *_: []  # how long networks take is measured by tests in their own process
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


class Program:
    """A script that runs by itself; the names of the methods are those of subprocess.Popen.

    `file_size` limits what any of its files may hold, in bytes. Standard output and error go to the files `stdout` and
    `stderr`, or are kept for `communicate`.
    """

    def __init__(self, argv, cwd=".", stdout=None, stderr=None, environment=None, file_size=None):
        self.streams = []
        for stream in (stdout, stderr):
            if stream is None:
                number, path = tempfile.mkstemp(prefix="program_")
                os.close(number)
            else:
                path = os.path.abspath(stream.name)
            self.streams.append(path)
        self.own = [path for path, stream in zip(self.streams, (stdout, stderr), strict=True) if stream is None]
        arguments = ([str(word) for word in argv], str(cwd), self.streams, dict(environment or {}), file_size)
        self.process = CONTEXT.Process(target=_child, args=arguments, daemon=True)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Waits for the end, and returns what went to standard output and error. TimeoutExpired after so many seconds."""
        self.process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired("modeling.py", timeout)
        said = tuple(Path(path).read_text() for path in self.streams)
        for path in self.own:
            Path(path).unlink()
        self.own = []
        return said


def start(*flags, cwd, **options) -> Program:
    """modeling.py with these flags, in the folder `cwd`."""
    return Program([SCRIPT, *flags], cwd, **options)


def command(*flags, cwd, **options) -> subprocess.CompletedProcess:
    """modeling.py with these flags, run to its end: its status and what it said."""
    program = start(*flags, cwd=cwd, **options)
    out, err = program.communicate()
    return subprocess.CompletedProcess(flags, program.returncode, out, err)


def run(argv, **_) -> subprocess.CompletedProcess:
    """In place of subprocess.run, for scripts that start Python with `argv` and read what it prints."""
    program = Program(argv[1:])
    out, err = program.communicate()
    assert program.returncode == 0, err
    return subprocess.CompletedProcess(argv, 0, out, err)


def team(*argv, cwd, processes: int = 2) -> subprocess.CompletedProcess:
    """A script as so many processes of one team, by the variables that torchrun sets: the first one's status and output.

    All other processes must end with the same status.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "PYTHONWARNINGS": "error"}
    members = [Program(argv, cwd, environment={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)]
    said = [member.communicate() for member in members]
    assert {member.returncode for member in members} == {members[0].returncode}, said
    return subprocess.CompletedProcess(argv, members[0].returncode, said[0][0], "".join(err for _, err in said))
