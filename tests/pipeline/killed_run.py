"""A run in its own process that receives kill -9 at a chosen point or moment."""

import multiprocessing
import os
import pathlib
import signal
import sys

# The server imports torch, transformers and TRL once; each run is a fork of it, and so starts in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["disa.cli.main", "disa.cli.run", "disa.pipeline"])


def start(recipe, point=None, *options):
    """``disa run RECIPE`` in a new process; it kills itself at the point, where there is one."""
    process = PROCESSES.Process(target=_work, args=(str(recipe), point, options))
    process.start()
    return process


def run_to_its_end(recipe, point=None):
    """Exit code of ``disa run RECIPE``: -9 where it was killed."""
    process = start(recipe, point)
    process.join()
    code = process.exitcode
    process.close()
    return code


def _work(recipe, point, options):
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if point is not None:
        moment, name = point
        if moment == "step":
            _kill_after_logging_step(name)
        else:
            _kill_at_rename(moment, name)
    from disa.cli.main import main

    sys.exit(main(["run", recipe, *options]))


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_at_rename(moment, name):
    """Every result appears by a rename: die just before or just after the one whose target ends with name."""
    for method in ("replace", "rename"):
        original = getattr(pathlib.Path, method)

        def renaming(self, target, original=original):
            here = str(target).endswith(name)
            if here and moment == "before":
                _kill()
            result = original(self, target)
            if here:
                _kill()
            return result

        setattr(pathlib.Path, method, renaming)


def _kill_after_logging_step(name):
    """Die in the middle of training, with ``name`` = FILE:STEP just written to the step log."""
    from disa.runs.step_log import StepLog

    file, step = name.split(":")
    original = StepLog.on_log

    def on_log(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if str(self.path).endswith(file) and state.global_step == int(step):
            _kill()

    StepLog.on_log = on_log
