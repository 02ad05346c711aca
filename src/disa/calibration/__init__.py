"""Calibrate from Python: a data set, reward functions and models become an anchor, as a recipe's run makes one.

Reads rows as :class:`trl.GRPOTrainer` does. Writes an ordinary run directory, ``1_tasks`` to ``5_anchor``, by the
stages themselves: it composes them, as ``comparison`` and ``study`` do, and adds none.
"""
