"""How proposal strength, inverse temperature and number of trajectories act on log Z, and on the policy.

Reads a recipe with a ``study`` section, writes ``study/`` in its run directory: a pool of trajectories for every
proposal strength, drawn once; the error of log Z in every cell (strength, beta, N), from disjoint blocks of N of the
pool; and policies trained with the anchors of chosen cells. Formula, for a prompt's error ``e = log Zhat - log Z``::

    E[e^2] = (E e)^2 + Var e

It composes stages and adds none: every pool and every policy is an ordinary run directory of a recipe that differs from
the study's own in the cell's variable alone.
"""
