"""Objectives as pure functions of log-probabilities, rewards and a log Z: torch in, torch out.

One residual and one loss::

    delta = log Z + log pi - log pi_ref - beta r,    loss = mean delta^2

delta is zero for every completion exactly when the policy is the tilted reference and log Z is exact. DISA, A*-PO,
VarGrad, GFlowRL and FlowRL differ in where log Z comes from (``log_z``): frozen, the group, or a learned head.
``advantages`` says the same to trainers that take an advantage per completion. Beside them stand the forward
projection, supervised learning, and the policy gradients GRPO and GSPO.
Whatever divides by a length says so by ``length="sum"`` or ``"mean"``; GRPO also takes ``"batch"``, all tokens of the
batch.
"""
