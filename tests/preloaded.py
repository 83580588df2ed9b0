"""Python programs that tests run without waiting for imports: forked from an interpreter that has torch and DeepSpeed already.

A launcher takes about 4 seconds of a core to import what it needs, one on two ranks four times that, and few tests are about how
it starts. `run` runs it in a process forked from an interpreter that has made these imports (nothing of m2i2 among them); Python
programs that it starts in turn (DeepSpeed's launcher its ranks, a recipe its cells) are forked too. They are processes like
others: with their own environment, working folder, output, signals and exit code. With ``M2I2_LONG=1`` in the environment, and
where there is a GPU (CUDA does not survive a fork), every program is started afresh.
"""

import atexit
import contextlib
import functools
import importlib
import inspect
import json
import logging
import multiprocessing.util
import os
import random
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

LONG = bool(os.environ.get("M2I2_LONG"))
"""Whether the long forms of the tests were asked for."""
IMPORTS = (
    *("torch.distributed", "deepspeed.ops", "transformers", "numpy", "PIL.Image", "safetensors.torch", "tokenizers", "psutil"),
)
AT_IMPORT = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "HOME")
"""Variables that the imports look at: a program with other values is started afresh."""
REQUEST = 200_000
"""No request is longer, bytes."""


class Program:
    """A program that goes on beside the test: the part of `subprocess.Popen` that tests use."""

    def __init__(self, words: Sequence[str], folder: Path, env: Mapping[str, str], out: int, err: int) -> None:
        self.args, self.returncode = words, None
        self._answer, theirs = socket.socketpair()
        with theirs:
            request = json.dumps([list(words), str(folder), dict(env)]).encode()
            socket.send_fds(_server(), [request], [theirs.fileno(), out, err])
        self.pid: int = struct.unpack("i", self._answer.recv(4))[0]

    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal."""
        if self.returncode is None:
            if not select.select([self._answer], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            (self.returncode,) = struct.unpack("i", self._answer.recv(4))
            self._answer.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def run(words: Sequence[str], folder: Path, env: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a Python program with its output captured."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        program = start(words, folder, env, out, err)
        try:
            code = program.wait(seconds)
        except subprocess.TimeoutExpired:
            program.send_signal(signal.SIGKILL)
            raise
        shown = []
        for file in (out, err):
            file.seek(0)
            shown.append(file.read().decode(errors="replace"))
    return subprocess.CompletedProcess(words, code, *shown)


def start(
    words: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: IO[Any], stderr: IO[Any]
) -> Program | subprocess.Popen[bytes]:
    """Start a Python program beside the test."""
    words = _in_full(words)
    if not _imported_with:
        _imported_with.update({name: env.get(name, "") for name in AT_IMPORT})
    if LONG or Path("/dev/nvidiactl").exists() or not _forkable(words, env):
        return subprocess.Popen(words, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
    return Program(words, cwd, env, stdout.fileno(), stderr.fileno())


def afresh(words: Sequence[str], folder: Path, env: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """The same in a new interpreter."""
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=seconds)


_imported_with: dict[str, str] = {}


def _in_full(words: Any) -> Any:
    """A command with the interpreter of its script."""
    if isinstance(words, list) and words[0] == "deepspeed":
        return [sys.executable, str(Path(sys.executable).parent / "deepspeed"), *words[1:]]
    return words


def _forkable(words: Any, env: Mapping[str, str]) -> bool:
    """Whether it is a script or a module for this interpreter, in an environment that fits the imports."""
    words = list(map(os.fspath, words)) if isinstance(words, list | tuple) else []
    rest = words[2:] if words[1:2] == ["-u"] else words[1:]
    starts = words[:1] == [sys.executable] and (rest[:1] == ["-m"] or not "".join(rest[:1]).startswith("-")) and bool(rest)
    return starts and all(env.get(name, "") == value for name, value in _imported_with.items())


@functools.cache
def _server() -> socket.socket:
    """The way to this process's server, started with the first program."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * REQUEST)
    command = [sys.executable, "-u", __file__, str(theirs.fileno())]
    env = {**os.environ, **_imported_with}
    process = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/")
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)  # first: it ends the server
    return ours


def _serve(control: socket.socket) -> None:
    """Fork a program for each request, until the other side is closed."""
    _imported_with.update({name: os.environ.get(name, "") for name in AT_IMPORT})
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in IMPORTS:
        importlib.import_module(name)
    assert threading.active_count() == 1
    subprocess.Popen._execute_child = _forking(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, files, _, _ = socket.recv_fds(control, REQUEST, 3)
        if not request:
            return
        if os.fork() == 0:
            control.close()
            _answer(request, files)
        for file in files:
            os.close(file)


def _answer(request: bytes, files: Sequence[int]) -> NoReturn:
    """Start a program, tell its process and, at its end, its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words, folder, env = json.loads(request)
    pid = os.fork()
    if pid == 0:
        os.close(files[0])
        _become(words, folder, env, {1: files[1], 2: files[2]}, ())
    with socket.socket(fileno=files[0]) as answer:
        answer.sendall(struct.pack("i", pid))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answer.sendall(struct.pack("i", code))
    os._exit(0)


def _forking(start: Callable[..., None]) -> Callable[..., None]:
    """`subprocess.Popen`'s way to start a program, with a fork where it can be forked."""
    signature = inspect.signature(start)

    @functools.wraps(start)
    def execute_child(*given: Any, **named: Any) -> None:
        call = signature.bind(*given, **named).arguments
        env = os.environ if call["env"] is None else call["env"]
        words = _in_full(call["args"])
        if call["shell"] or call["executable"] or call["preexec_fn"] or not _forkable(words, env):
            return start(*given, **named)
        child = os.fork()
        if child == 0:
            if call["start_new_session"]:
                os.setsid()
            pipes = {0: call["p2cread"], 1: call["c2pwrite"], 2: call["errwrite"]}
            _become(words, call["cwd"] or ".", env, {at: file for at, file in pipes.items() if file != -1}, call["pass_fds"])
        process: Any = call["self"]
        process.pid, process._child_created = child, True
        names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        process._close_pipe_fds(*(call[name] for name in names))
        return None

    return execute_child


def _become(words: Sequence[Any], folder: str, env: Mapping[str, str], files: Mapping[int, int], kept: Sequence[int]) -> NoReturn:
    """Turn this fork into the program, and end with it as an interpreter does."""
    code: Any = 1
    try:
        _forget_exit_functions()
        _put_in_place(folder, dict(env), files, kept)
        _execute([os.fspath(word) for word in words[1:]])
        code = 0
    except SystemExit as e:
        code = e.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        finally:
            os._exit(code)


def _forget_exit_functions() -> None:
    """What the forking process does at its end (remove its temporary folders, for one) is not this one's to do."""
    atexit._clear()
    finalize: Any = weakref.finalize
    finalize._registry.clear()
    finalize._registered_with_atexit = False
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]


def _put_in_place(folder: str, env: dict[str, str], files: Mapping[int, int], kept: Sequence[int]) -> None:
    """The files, the folder and the environment that the program was to be started with."""
    for at, file in files.items():
        os.dup2(file, at)
    above = 2
    for file in sorted(kept):
        os.closerange(above + 1, file)
        above = file
    os.closerange(above + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir(folder)
    old, new = ([path for path in place.get("PYTHONPATH", "").split(":") if path] for place in (os.environ, env))
    sys.path[:] = [*new, *(path for path in sys.path[1:] if path not in old)]
    os.environ.clear()
    os.environ.update(env)
    if "RANK" in env:  # what /proc shows of the environment is the server's
        Path("/proc/self/comm").write_text(f"rank {env['RANK']}")
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ImportError):
        importlib.import_module("sitecustomize")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(name, signal.SIG_DFL)
    random.seed()


def _execute(words: list[str]) -> None:
    """Run ``[-u] SCRIPT WORD...`` or ``[-u] -m MODULE WORD...``."""
    if words[0] == "-u":
        words = words[1:]
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _serve(control)
