"""The method end to end on a model whose target is known exactly."""

import pytest
from frozen_oracle import Problem


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return Problem(tmp_path_factory.mktemp("oracle") / "reference")


def test_with_the_exact_log_z_the_trainer_reaches_the_target(problem, tmp_path):
    trainer = problem.trainer(tmp_path, problem.anchor())
    before = problem.kl_to_target(trainer.model).mean()
    trainer.train()
    after = problem.kl_to_target(trainer.model)
    assert before > 0.5
    # 200 steps leave 0.002. Measured with faults put in: a beta 20% too small leaves 0.028, a last token
    # that is not counted 0.14, a forgotten reference 1.1.
    assert after.mean() < 0.01
    assert after.max() < 0.03


@pytest.mark.parametrize("baseline", ["anchored", "none"])
def test_an_overestimated_log_z_leaves_the_on_policy_optimum_in_place_and_the_audit_finds_it(
    problem, tmp_path, baseline
):
    trainer = problem.trainer(tmp_path, problem.anchor(log_z_error=0.5), baseline=baseline)
    trainer.train()
    assert problem.kl_to_target(trainer.model).mean() < 0.02
    audited = [line["eps_audit"] for line in trainer.state.log_history if "eps_audit" in line][-1]
    # 3,200 completions with a residual spread near sqrt(2 KL) = 0.2: a standard error of 0.004.
    assert audited == pytest.approx(0.5, abs=0.02)
