"""Supervised warm-up: the preparation that makes a reference, and a proposal, where none is given.

Reads ``1_tasks`` (warm-up prompts), writes two ordinary Hugging Face folders, ``warmup/reference``
and ``warmup/proposal``. Formula: maximum likelihood, ``-E log pi(y | x)`` over demonstrations of
which a share is wrong on purpose. A reference trained on noisy demonstrations knows more than it
shows, and a proposal with less noise or more steps is a stronger sampler of the same solutions.

It stands outside the numbered stages because the method itself starts from two given models.
"""
