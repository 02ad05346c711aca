"""First steps of every script in a sandbox: read the setup, give up what is left of power, report the start."""

import os
import resource

import plain_data

_MB = 1024 * 1024


def enter(setup_fd):
    """Read the setup, become an unprivileged user where still root, set the resource limits, report the start.

    What follows runs under a user id that nothing else has, or, in a user namespace, under the caller's own.
    """
    with open(setup_fd, "rb") as file:
        setup = plain_data.read_value(file.read())
    # Private and empty; opened for writing by whoever the process becomes.
    os.close(os.open("/dev/null", os.O_CREAT | os.O_WRONLY))
    os.chmod("/dev/null", 0o666)
    if setup["uid"] is not None:
        os.setgroups([])
        os.setresgid(setup["uid"], setup["uid"], setup["uid"])
        os.setresuid(setup["uid"], setup["uid"], setup["uid"])
    limits = setup["limits"]
    for name, hard in {
        "AS": limits["memory_mb"] * _MB,
        "CORE": 0,
        "FSIZE": limits["file_mb"] * _MB,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "NOFILE": limits["open_files"],
        "NPROC": limits["threads"],
        "SIGPENDING": limits["threads"],
    }.items():
        _limit(name, hard, hard)
    # The soft limit sends SIGXCPU, by which the time-out is recognised; who catches it is killed a second later.
    _limit("CPU", limits["cpu_seconds"], limits["cpu_seconds"] + 1)
    os.umask(0o077)
    os.chdir("/tmp")
    os.write(setup["started_fd"], b"1")
    os.close(setup["started_fd"])
    return setup


def _limit(name, soft, hard):
    """Set one limit, or keep a lower one that is already there."""
    number = getattr(resource, f"RLIMIT_{name}")
    ceiling = resource.getrlimit(number)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.setrlimit(number, (soft, hard))


def silence():
    """Send error output where output goes: stdin and stdout are the null device already, opened by the caller."""
    os.dup2(1, 2)
