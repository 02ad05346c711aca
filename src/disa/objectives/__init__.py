"""Objectives as pure functions of log-probabilities, rewards and a frozen log Z: torch in, torch out.

Formula: ``delta = log Z + log pi - log pi_ref - beta r``, zero for every completion exactly when the
policy is the tilted reference and log Z is exact.
"""
