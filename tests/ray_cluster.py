"""A Ray cluster of several nodes on one machine, for tests: raylets of their own, which can be killed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


class Cluster:
    """A head and further nodes, started by ``ray start``; every process of theirs is of one session folder.

    Parameters
    ----------
    environment : dict
        Variables of the nodes, and so of their workers.
    """

    def __init__(self, **environment: str) -> None:
        # Sockets live in it, whose paths may have 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        packages = [str(ROOT / "src"), *sys.path[1:]]
        quiet = {
            "RAY_DISABLE_MEMORY_MONITOR": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        limits = {
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "10",
            "RAY_gcs_server_port_wait_time_s": "300",
        }
        threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.environment = os.environ | threads | quiet | limits | {"PYTHONPATH": ":".join(filter(None, packages))}
        self.environment |= environment
        self.address, self.nodes = "", []

    def start(self, *, cpus: int = 1, gpus: int = 0, **environment: str) -> int:
        """Start a node, the head where there is none; returns its number."""
        for attempt in range(5):  # Ray gives a raylet 30 seconds, which a busy machine may not have for it
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}"]
            role = [f"--address={self.address}"] if self.address else head
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--block", f"--num-cpus={cpus}"]
            command += [f"--num-gpus={gpus}", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
            path, given = self._folder / f"node-{len(self.nodes)}-{attempt}.log", self.environment | environment
            with path.open("w") as log:
                # A session of its own, so that a kill takes the raylet and its workers and nobody else.
                node = subprocess.Popen(command, env=given, stdout=log, stderr=log, start_new_session=True)
            if self._runs(node, path):
                self.nodes.append(node)
                self.address = self.address or f"127.0.0.1:{port}"
                return len(self.nodes) - 1
            self._kill(node)
        said = path.read_text()
        self.close()
        raise RuntimeError(f"a node of Ray did not start:\n{said}")

    def kill(self, number: int) -> None:
        """Kill a node's raylet and all its workers, as a lost machine would."""
        if self.nodes[number].returncode is None:  # else waited for: its number may be another process's by now
            self._kill(self.nodes[number])

    def close(self) -> None:
        """Kill what is left and remove its files."""
        for number in reversed(range(len(self.nodes))):
            self.kill(number)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _kill(self, node: subprocess.Popen) -> None:
        # Workers lead process groups of their own within the node's session.
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == node.pid:
                    os.kill(pid, signal.SIGKILL)
        node.wait()

    def _runs(self, node: subprocess.Popen, log: Path) -> bool:
        for _ in range(1200):
            if "Ray runtime started" in log.read_text():
                return True
            if node.poll() is not None:
                break
            time.sleep(0.1)
        return False
