"""What libraries print, kept from hiding what a command says."""

from __future__ import annotations

import warnings


def quiet_libraries() -> None:
    """Switch off bars over reading and writing model files, and a warning that TRL 1.16 cannot avoid.

    It asks transformers for an attribute by its old name.
    """
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    disable_progress_bars()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
