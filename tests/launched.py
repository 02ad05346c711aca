"""Processes that believe in a launcher: each gets the environment that accelerate launch and torchrun give it."""

import multiprocessing
import os
import socket
import sys

# The server imports torch, transformers and TRL once; each process is a fork of it, and so starts in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["disa.cli.main", "disa.cli.run", "disa.pipeline"])


def launch(target, *arguments, count):
    """Exit codes of ``count`` processes that call ``target(*arguments)`` together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [PROCESSES.Process(target=_work, args=(rank, count, port, target, arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _work(rank, count, port, target, arguments):
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    if count > 1:  # one process is started without a launcher
        os.environ.update({name: str(value) for name, value in given.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.exit(target(*arguments))
