"""The certificate holds at least as often as it says, in every cell, and says what made it wide."""

import numpy as np
import pytest

from disa.cli.main import main
from disa.evaluation.certificate import certify, upper_mean
from disa.partition.log_weights import soft_success
from disa.runs.folders import read_json
from disa.testing import Space, binary_reward, graded_reward, kl, log_partition, make_proposal, random_model, target
from disa.testing.proposals import Strength

PROMPTS, REPEATS, LEVEL = 6, 200, 0.9
SPACE = Space(vocabulary=3, length_limit=3)


class Cell:
    """A reference, a proposal, rewards and a policy, all of whose probabilities are known."""

    def __init__(self, beta, rewards, nearness, seed=0):
        rng = np.random.default_rng(seed)
        self.beta, reference = beta, random_model(SPACE, PROMPTS, rng)
        shares = np.linspace(0.02, 0.6, PROMPTS)
        self.rewards = {"binary": binary_reward, "graded": graded_reward}[rewards](reference, shares, rng)
        proposal = make_proposal(reference, self.rewards, Strength(0.5, noise=0.3), rng)
        self.log_ref, self.log_mu = reference.log_probs, proposal.log_probs
        pi_star = target(self.log_ref, self.rewards, beta)
        other = random_model(SPACE, PROMPTS, rng).log_probs
        mixed = nearness * pi_star + (1 - nearness) * other
        self.log_pi = mixed - np.logaddexp.reduce(mixed, axis=1, keepdims=True)
        self.kl = kl(self.log_pi, pi_star).mean()
        self.log_z = log_partition(self.log_ref, self.rewards, beta)

    def draw(self, rng, log_p, n):
        picked = np.stack([rng.choice(SPACE.completions, size=n, p=np.exp(row)) for row in log_p])
        return picked.ravel(), np.repeat(np.arange(PROMPTS), n)

    def certificate(self, rng, samples=8, trajectories=16, alpha=0.25, **changes):
        y, x = self.draw(rng, self.log_pi, samples)
        n_ref = round(alpha * trajectories)
        drawn = [self.draw(rng, self.log_ref, n_ref), self.draw(rng, self.log_mu, trajectories - n_ref)]
        t, p = (np.concatenate(pair) for pair in zip(*drawn, strict=True))
        log_w = -np.logaddexp(np.log(alpha), np.log1p(-alpha) + self.log_mu[p, t] - self.log_ref[p, t])
        r, q = self.draw(rng, self.log_ref, 4)

        def soft(prompt, completion):
            return soft_success(self.rewards[prompt, completion], self.beta, (0.0, 1.0))

        arrays = [self.log_pi[x, y] - self.log_ref[x, y], self.rewards[x, y], x, np.exp(log_w) * soft(p, t), p]
        settings = {"largest_weight": 1 / alpha, "beta": self.beta, "reward_range": (0.0, 1.0), "level": LEVEL}
        return certify(*arrays, soft(q, r), q, **settings | changes)


@pytest.mark.parametrize("nearness", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("rewards", ["binary", "graded"])
@pytest.mark.parametrize("beta", [1.0, 4.0, 15.0])
def test_it_covers_at_least_as_often_as_it_says_in_every_cell(beta, rewards, nearness):
    cell, rng = Cell(beta, rewards, nearness), np.random.default_rng(1)
    held = [cell.certificate(rng).kl >= cell.kl for _ in range(REPEATS)]
    assert np.mean(held) >= LEVEL


def test_a_finished_run_certifies_every_model_and_says_it(finished_run, capsys):
    found = read_json(finished_run / "8_report" / "certificates.json")
    models = {folder.name for folder in (finished_run / "7_evaluation").iterdir()}
    assert found.keys() == models
    for c in found.values():
        assert c["kl"] == pytest.approx(c["estimate"] + c["from_samples"] + c["from_trajectories"])
        assert c["from_samples"] > 0 and c["from_trajectories"] > 0 and 0 < c["tv"] < 1
    assert "Upper bounds on means over" in (finished_run / "8_report" / "report.html").read_text()
    assert main(["inspect", str(finished_run)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"certificate of disa: KL to the target at most {found['disa']['kl']:.3f} nats" in printed


def test_each_half_covers_by_itself_with_values_that_are_rarely_large():
    rng, probability = np.random.default_rng(2), np.array([0.002, 0.02, 0.2])
    draws = (rng.random((500, 40, 3)) < probability).astype(float).reshape(500, -1)
    bounds = np.array([upper_mean(7.0 * x, 7.0, 0.1) for x in draws])
    assert (bounds >= 7.0 * probability.mean()).mean() >= 0.9
    # Of 120 values a Clopper-Pearson bound for one expectation lies at 1.5 times the mean.
    assert bounds.mean() < 2.5 * 7.0 * probability.mean()


def test_the_bound_tends_to_the_mean_of_many_values_and_never_leaves_the_range():
    x = np.random.default_rng(3).random(100_000)
    # Constant bets come within a factor of two of a normal interval: 1.28 sd / sqrt(n) = .0012.
    assert x.mean() < upper_mean(x, 1.0, 0.1) < x.mean() + 0.004
    assert upper_mean(np.ones(5), 1.0, 0.1) == pytest.approx(1.0)
    assert upper_mean(np.zeros(5), 1.0, 0.1) < 1.0


def test_more_samples_and_more_trajectories_each_lower_their_own_margin_and_the_advice_names_the_larger():
    cell = Cell(4.0, "binary", 0.7)
    few = cell.certificate(np.random.default_rng(4), samples=8, trajectories=400)
    sampled = cell.certificate(np.random.default_rng(4), samples=400, trajectories=400)
    assert sampled.from_samples < few.from_samples / 4
    assert few.advice == "raise evaluation.samples_per_prompt"
    drawn = cell.certificate(np.random.default_rng(4), samples=400, trajectories=16)
    assert drawn.from_trajectories > 4 * sampled.from_trajectories
    assert drawn.advice == "raise proposals.per_heldout_prompt"
    assert sampled.kl == pytest.approx(sampled.estimate + sampled.from_samples + sampled.from_trajectories)
    # What is left is the tangent's gap, with pilots of four samples.
    assert cell.kl < sampled.kl < cell.kl + 1.0


def test_total_variation_follows_by_the_sharper_of_two_inequalities():
    cell, rng = Cell(4.0, "binary", 1.0), np.random.default_rng(5)
    found = cell.certificate(rng, samples=2000, trajectories=2000)
    exact = 0.5 * np.abs(np.exp(cell.log_pi) - np.exp(target(cell.log_ref, cell.rewards, cell.beta))).sum(axis=1).mean()
    # Of the two inequalities neither is looser than Pinsker's.
    assert exact < found.tv <= (found.kl / 2) ** 0.5
    far = Cell(15.0, "binary", 0.0).certificate(rng)
    assert far.kl > 2 and far.tv < 1.0


def test_an_undecided_sample_can_only_raise_the_bound():
    x = np.array([0, 0, 1, 1])
    arrays = {"largest_weight": 1.0, "beta": 4.0, "reward_range": (0.0, 1.0)}
    bounds = [
        certify(np.zeros(4), np.array([1.0, 0.0, 1.0, r]), x, np.ones(4) / 2, x, np.ones(4) / 2, x, **arrays).kl
        for r in (1.0, np.nan)
    ]
    assert bounds[1] > bounds[0]


def test_what_lies_above_the_ceiling_counts_as_the_ceiling_and_is_said():
    x = np.array([0, 0, 1, 1])
    arguments = [np.array([90.0, 0, 0, 0]), np.zeros(4), x, np.ones(4) / 2, x, np.ones(4) / 2, x]
    settings = {"largest_weight": 1.0, "beta": 4.0, "reward_range": (0.0, 1.0)}
    low, high = (certify(*arguments, **settings, ceiling=c) for c in (50.0, 100.0))
    assert low.estimate < high.estimate and low.largest > 90.0
