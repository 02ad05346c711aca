"""The one exception a user of DISA is meant to read."""

from __future__ import annotations


class DisaError(ValueError):
    """Something the user can fix: bad input, a mismatched anchor, a missing stage.

    The command line prints its message as one line and exits with code 2 (a traceback only with
    ``--debug``), so every message says where (file, row, field), what was found, what is allowed,
    and how to fix it. Programmer errors stay ``assert`` or ordinary exceptions.

    Parameters
    ----------
    problem : str
        What was found and what was expected.
    where : str, optional
        File, row, field or stage the problem sits in; put in front of the message.
    fix : str, optional
        What to do about it; put behind the message.
    """

    def __init__(self, problem: str, *, where: str = "", fix: str = "") -> None:
        self.problem, self.where, self.fix = problem, where, fix
        message = f"{where}: {problem}" if where else problem
        super().__init__(f"{message.rstrip('.')}. Fix: {fix}" if fix else message)
