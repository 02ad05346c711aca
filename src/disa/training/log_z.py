"""Where a trainer's log Z comes from: a part of :class:`disa.training.balance_trainer.BalanceTrainer`.

A source says what log Z is, and when it is known: before the update (``sampled``: frozen, group) or with it
(``learned``). Its attributes say what else its method changes in the loss. No source knows another.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from disa.errors import DisaError
from disa.objectives.log_z import group_log_z
from disa.objectives.trajectory_balance import Length
from disa.training.policy_log_probs import own_mask

if TYPE_CHECKING:
    from disa.training.balance_trainer import BalanceTrainer
    from disa.training.disa_config import DISAConfig

Rows = list[dict[str, Any]]


class LogZ:
    """A source of log Z; abstract.

    Attributes
    ----------
    name, paper : str
        Of the method, for the model card; the paper as an arXiv number.
    frozen : bool
        Whether log Z is known before training: then a baseline can shrink to it, and groups of one can learn.
    scale : float
        Factor on the residual.
    clip : dict or None
        ``low`` and ``high`` of :func:`disa.objectives.trajectory_balance.clip_gap`; None for no clip.
    ratio_range : tuple of float or None
        Bounds on importance weights beside ``weight_cap``.
    reward_range : tuple of float
        Smallest and largest reward that log Z was estimated for.
    normalised_rewards : bool
        Whether rewards are normalised within the group (TRL's advantages) instead of raw.
    signal : mapping or None
        Expected spread of residuals by prompt id, where it is known before training.
    module : nn.Module or None
        What is trained beside the policy, at ``learning_rate``, and saved with the optimiser's state.
    """

    name, paper = "Trajectory balance", "2201.13259"
    frozen = False
    scale = 1.0
    clip: dict[str, float] | None = None
    ratio_range: tuple[float, float] | None = None
    reward_range = (-math.inf, math.inf)
    normalised_rewards = False
    signal: Mapping[str, float] | None = None
    module: nn.Module | None = None
    learning_rate: float | None = None

    def check(self, args: DISAConfig, datasets: Sequence[Any]) -> None:
        """Refuse settings and prompts under which this log Z means nothing, before a model is loaded."""

    def attach(self, trainer: BalanceTrainer) -> None:
        """Make what is trained beside the policy, once the trainer stands."""

    def sampled(self, trainer: BalanceTrainer, batch: dict[str, Any], rows: Rows) -> Tensor | None:
        """Log Z of this process's fresh completions, nats, shape (rows,); None where it is known with the update."""
        return None

    def learned(self, trainer: BalanceTrainer, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Log Z of one micro-batch with gradient, where :meth:`sampled` gave none."""
        raise NotImplementedError

    def audited(self, row: dict[str, Any]) -> bool:
        """Whether the audit reads the residuals of a prompt's completions."""
        return True

    def facts(self) -> dict[str, float]:
        """What every line of the log says of this source."""
        return {}


class Frozen(LogZ):
    """Known for every prompt before training (DISA, A*-PO), by the data set's column ``prompt_id``.

    Log Z is the group's mean all the same for prompts in ``from_group``. ``scale`` is a factor on the residual,
    ``facts`` are for the log, and ``prompts="signal"`` starts from ``signal``
    (:func:`disa.training.prompt_sampler.expected_signal`).
    """

    frozen = True

    def __init__(
        self,
        values: Mapping[str, float],
        *,
        scale: float = 1.0,
        from_group: Collection[str] = (),
        facts: Mapping[str, float] | None = None,
        signal: Mapping[str, float] | None = None,
        reward_range: tuple[float, float] = (-math.inf, math.inf),
        name: str = "DISA",
        paper: str = "2605.17295",
    ) -> None:
        self.values, self.scale, self.name, self.paper = values, scale, name, paper
        self.reward_range, self.signal = reward_range, signal
        self._from_group, self._facts = frozenset(from_group), dict(facts or {})

    def check(self, args: DISAConfig, datasets: Sequence[Any]) -> None:
        """Refuse prompts without a value and means over tokens."""
        if args.length != "sum":
            raise DisaError(
                f"length={args.length!r}, expected 'sum': a frozen log Z normalises sums, residuals of means have "
                "another normaliser",
                where="DISAConfig",
                fix="use length='sum'",
            )
        for prompt_id in (p for dataset in datasets for p in dataset.unique("prompt_id")):
            if prompt_id not in self.values:
                raise DisaError(
                    f"no log Z for prompt {prompt_id}; {len(self.values)} prompts have one",
                    where=self.name,
                    fix="train on prompts whose trajectories were drawn, scored and estimated from",
                )

    def sampled(self, trainer: BalanceTrainer, batch: dict[str, Any], rows: Rows) -> Tensor:
        """The values, the group's mean in place of some prompts'."""
        values = [self.values[row["prompt_id"]] for row in rows]
        log_z = torch.tensor(values, dtype=torch.float64, device=batch["completion_ids"].device)
        if self._from_group:
            log_z = torch.where(batch["audited"], log_z, group_means(trainer, batch, length="sum"))
        return log_z

    def audited(self, row: dict[str, Any]) -> bool:
        """All but the group's: its mean follows the policy, and its residuals average to zero."""
        return row["prompt_id"] not in self._from_group

    def facts(self) -> dict[str, float]:
        """As given."""
        return self._facts


class Contrast(Frozen):
    """Contrastive balance: pairs of a group's completions, whose log Z cancels (arXiv 2406.03288).

    ``mean_{i < j} (delta_i - delta_j)^2 / 2`` has the gradient of ``mean (delta - b)^2`` with b the mean of the others'
    residuals, the anchored baseline with n0 = 0. Any log Z gives the same, so it is 0, and there is nothing to audit.
    """

    def __init__(self, prompt_ids: Collection[str]) -> None:
        super().__init__(dict.fromkeys(prompt_ids, 0.0), name="Contrastive balance", paper="2406.03288")

    def check(self, args: DISAConfig, datasets: Sequence[Any]) -> None:
        """Refuse groups of one, and a baseline that would keep some of log Z."""
        super().check(args, datasets)
        if args.num_generations == 1 or args.baseline != "anchored" or args.baseline_prior_strength != 0:
            raise DisaError(
                f"num_generations={args.num_generations}, baseline={args.baseline!r}, baseline_prior_strength="
                f"{args.baseline_prior_strength:g}: log Z cancels within groups of two or more, and with n0 = 0 alone",
                where=self.name,
                fix="use num_generations of 2 or more, baseline='anchored', baseline_prior_strength=0",
            )

    def audited(self, row: dict[str, Any]) -> bool:
        """No residual says anything about a log Z that is none."""
        return False


class Group(LogZ):
    """The group's mean, anew at every step (VarGrad, arXiv 2010.10436; TBA, arXiv 2503.18929; GFlowRL).

    GFlowRL (arXiv 2607.13394) keeps residuals in [-clip_low, clip_high] at sampling time; ``ratio_range``, bounds on
    importance weights, is the other way to read its thresholds. With ``sums`` log Z comes from sums also where the
    residual is of means, as it was published (its Eq. 4 and 6).
    """

    def __init__(
        self,
        *,
        clip_low: float | None = None,
        clip_high: float | None = None,
        ratio_range: tuple[float, float] | None = None,
        sums: bool = False,
        name: str = "VarGrad",
        paper: str = "2010.10436",
    ) -> None:
        for field, value in (("clip_low", clip_low), ("clip_high", clip_high)):
            if value is not None and not value > 0:
                raise DisaError(f"{field} is {value}, expected a number above 0", where=name, fix=f"leave {field} out")
        if (clip_low, clip_high) != (None, None):
            self.clip = {"low": clip_low or math.inf, "high": clip_high or math.inf}
        self._sums, self.name, self.paper, self.ratio_range = sums, name, paper, ratio_range

    def check(self, args: DISAConfig, datasets: Sequence[Any]) -> None:
        """Refuse groups of one."""
        if args.num_generations == 1:
            raise DisaError(
                "num_generations=1: a group's own mean is its log Z, so the residual of a group of one is zero",
                where=self.name,
                fix="use num_generations of 2 or more, or a method with a frozen or learned log Z",
            )

    def sampled(self, trainer: BalanceTrainer, batch: dict[str, Any], rows: Rows) -> Tensor:
        """Each group's mean."""
        return group_means(trainer, batch, length="sum" if self._sums else trainer.args.length)


def gflowrl_log_z(**settings: Any) -> Group:
    """GFlowRL's log Z: as :class:`Group`. With sums, no clip and fresh completions it is VarGrad."""
    return Group(**settings, name="GFlowRL", paper="2607.13394")


def group_means(trainer: BalanceTrainer, batch: dict[str, Any], *, length: Length) -> Tensor:
    """Log Z of every group, before TRL scatters a group over micro-batches; groups may span processes."""
    mask, rows = own_mask(batch), len(batch["completion_mask"])
    log_sampler = (trainer.sampler_log_probs(batch).double() * mask).sum(dim=1)
    log_ref = (batch["ref_per_token_logps"].double() * mask).sum(dim=1)
    gather = trainer.accelerator.gather
    log_z = group_log_z(
        gather(log_sampler),
        gather(log_ref),
        gather(batch["raw_reward"].double()),
        trainer.groups(rows),
        beta=trainer.args.inverse_temperature,
        length=length,
        lengths=gather(mask.sum(dim=1)),
    )
    return log_z[trainer.own_rows(rows)]
