"""The system calls a sandboxed Python may make, as a seccomp filter in classic BPF.

An allow list: whatever is missing here fails with ENOSYS, so that new calls of newer kernels are closed too. Not
allowed, among many: socket, ptrace, process_vm_readv, mount, unshare, setns, keyctl, bpf, io_uring_setup,
perf_event_open, memfd_create, userfaultfd, fork, vfork and clone3. clone passes for threads only: a run is one process,
so its limits are totals, and there is nothing it can leave behind. Nor can it leave a sign for another run on a file
that both see: no call sets times or attributes, and fcntl passes for descriptors, not for locks, leases or notices.

Instruction layout: linux/bpf_common.h; ``struct seccomp_data``: linux/seccomp.h; numbers: asm/unistd_64.h and
asm-generic/unistd.h.
"""

from __future__ import annotations

import platform
import struct

from disa.errors import DisaError

# Audit names of the architectures (linux/audit.h), and the column of the table below that holds their numbers.
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
# name: (number on x86_64, number on aarch64); -1 where an architecture has no such call.
# fmt: off
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65),
    "writev": (20, 66), "open": (2, -1), "openat": (257, 56), "close": (3, 57), "close_range": (436, 436),
    "lseek": (8, 62), "ioctl": (16, 29), "dup": (32, 23), "dup2": (33, -1), "dup3": (292, 24),
    "pipe": (22, -1), "pipe2": (293, 59), "stat": (4, -1), "fstat": (5, 80), "lstat": (6, -1),
    "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44), "access": (21, -1),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, -1), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "mkdir": (83, -1),
    "mkdirat": (258, 34), "rmdir": (84, -1), "unlink": (87, -1), "unlinkat": (263, 35), "rename": (82, -1),
    "renameat": (264, 38), "renameat2": (316, 276), "symlink": (88, -1), "symlinkat": (266, 36), "link": (86, -1),
    "linkat": (265, 37), "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "umask": (95, 166),
    "truncate": (76, 45), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83),
    "sendfile": (40, 71), "copy_file_range": (326, 285), "fadvise64": (221, 223), "poll": (7, -1),
    "ppoll": (271, 73), "select": (23, -1), "pselect6": (270, 72), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, -1), "epoll_pwait": (281, 22), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214), "membarrier": (324, 283), "execve": (59, 221),
    "exit": (60, 93), "exit_group": (231, 94), "wait4": (61, 260), "waitid": (247, 95), "kill": (62, 129),
    "tgkill": (234, 131), "set_tid_address": (218, 96), "set_robust_list": (273, 99), "rseq": (334, 293),
    "futex": (202, 98), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "arch_prctl": (158, -1),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "pause": (34, -1), "alarm": (37, -1), "setitimer": (38, 103),
    "getitimer": (36, 102), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, -1), "times": (100, 153), "getpid": (39, 172),
    "getppid": (110, 173), "gettid": (186, 178), "getpgrp": (111, -1), "getpgid": (121, 155), "getsid": (124, 156),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "setgroups": (116, 159), "setresgid": (119, 149),
    "setresuid": (117, 147), "getrlimit": (97, 163), "setrlimit": (160, 164), "prlimit64": (302, 261),
    "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160), "getrandom": (318, 278), "getcpu": (309, 168),
}
# fmt: on
_CLONE, _FCNTL = (56, 220), (72, 25)
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_GETPIPE_SZ (linux/fcntl.h).
_DESCRIPTOR_COMMANDS = (0, 1, 2, 3, 4, 1030, 1031, 1032)

_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NR, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_CLONE_THREAD = 0x00010000
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME (linux/sched.h).
_CLONE_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x80


def seccomp_filter(machine: str | None = None) -> bytes:
    """The filter program for this machine, as ``bwrap --seccomp`` reads it.

    Raises DisaError on an architecture without a table of call numbers.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise DisaError(
            f"no list of system calls for machine {machine!r}, only for {', '.join(_ARCHITECTURES)}",
            where="code verifier",
            fix="judge programs on one of these machines",
        )
    audit, column = _ARCHITECTURES[machine]
    last = len(_DESCRIPTOR_COMMANDS)
    commands = [_instruction(_JUMP_EQUAL, command, yes=last - i) for i, command in enumerate(_DESCRIPTOR_COMMANDS)]
    numbers = sorted({pair[column] for pair in _ALLOWED.values() if pair[column] >= 0})
    return b"".join(
        [
            _instruction(_LOAD, _ARCH),
            _instruction(_JUMP_EQUAL, audit, yes=1),
            _instruction(_RETURN, _KILL),
            _instruction(_LOAD, _NR),
            # clone: threads, and no new namespaces.
            _instruction(_JUMP_EQUAL, _CLONE[column], no=5),
            _instruction(_LOAD, _FIRST_ARGUMENT),
            _instruction(_JUMP_ANY_BIT, _CLONE_NAMESPACES, yes=2),
            _instruction(_JUMP_ANY_BIT, _CLONE_THREAD, no=1),
            _instruction(_RETURN, _ALLOW),
            _instruction(_RETURN, _ERRNO | _EPERM),
            _instruction(_JUMP_EQUAL, _FCNTL[column], no=len(commands) + 3),
            _instruction(_LOAD, _SECOND_ARGUMENT),
            *commands,
            _instruction(_RETURN, _ERRNO | _EPERM),
            _instruction(_RETURN, _ALLOW),
            *(_instruction(_JUMP_EQUAL, number, yes=len(numbers) - at) for at, number in enumerate(numbers)),
            _instruction(_RETURN, _ERRNO | _ENOSYS),
            _instruction(_RETURN, _ALLOW),
        ]
    )


def _instruction(code: int, k: int, *, yes: int = 0, no: int = 0) -> bytes:
    """``struct sock_filter``: operation, relative jumps where true and where false, operand."""
    return struct.pack("<HBBI", code, yes, no, k)
