"""Arguments of :class:`DISATrainer`: those of every trajectory-balance trainer, and what DISA does with its anchor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from disa.errors import DisaError
from disa.training.balance_config import BalanceConfig
from disa.training.flags import POLICIES


@dataclass
class DISAConfig(BalanceConfig):
    """Configuration of :class:`DISATrainer`.

    Everything of :class:`trl.GRPOConfig` applies, except what would break the frozen log Z's
    meaning, which is refused. ``num_generations`` may be 1.
    """

    # A frozen log Z normalises sums; residuals of means have another normaliser.
    lengths: ClassVar[tuple[str, ...]] = ("sum",)

    baseline: str = field(
        default="anchored",
        metadata={"help": "'anchored': leave-one-out mean of the residuals shrunk towards zero; 'none': none."},
    )
    baseline_prior_strength: float = field(
        default=1.0,
        metadata={"help": "n0 of the anchored baseline: completions' worth of trust in the frozen log Z."},
    )
    offline_share: float = field(
        default=0.0,
        metadata={"help": "Share in [0, 1) of the forward projection on offline trajectories in the objective."},
    )
    flagged: str = field(
        default="train",
        metadata={
            "help": "Prompts whose log Z is flagged: 'train' on them all the same, take their log Z from the 'group', "
            "'skip' them, or 'refuse' to train."
        },
    )

    def __post_init__(self) -> None:
        """Refuse what a frozen log Z cannot live with."""
        for name, allowed in (("baseline", ("anchored", "none")), ("flagged", POLICIES)):
            if getattr(self, name) not in allowed:
                expected = " or ".join(repr(value) for value in allowed)
                raise DisaError(f"{name}={getattr(self, name)!r}, expected {expected}", where="DISAConfig")
        if not self.baseline_prior_strength >= 0.0:
            raise DisaError(
                f"baseline_prior_strength={self.baseline_prior_strength}, expected a number of at least 0",
                where="DISAConfig",
            )
        if not 0.0 <= self.offline_share < 1.0:
            raise DisaError(f"offline_share={self.offline_share}, expected a number in [0, 1)", where="DISAConfig")
        if self.flagged == "group" and self.num_generations == 1:
            raise DisaError(
                "flagged='group' needs groups, but num_generations is 1",
                where="DISAConfig",
                fix="use num_generations of 2 or more, or flagged='skip'",
            )
        super().__post_init__()
