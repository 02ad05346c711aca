"""Optimise the policy against the frozen anchor.

Reads ``1_tasks``, the reference and ``5_anchor``, writes ``6_training/METHOD``: a Hugging Face model
folder and a step log. Formula: ``min E_pi[(log Z + log pi - log pi_ref - beta r)^2]`` with log Z and
pi_ref frozen. Baselines of the comparison train here too, on the same prompts and budget.
"""
