import dataclasses
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import ndtri
from six_outcomes import PASSES, PROPOSAL, REFERENCE, exact_log_z, sample

from adaptive_loop import adaptive_budget
from disa.errors import DisaError
from disa.partition import estimate_log_partition_batch
from disa.partition.allocation import allocate, least_variance_share, next_round, relative_spread
from disa.partition.draws import collect_draws, trajectory_arrays
from disa.partition.plan import plan_round, resample_flagged, spent_budget, spent_resampling, stopped_at_cap
from disa.runs.records import PartitionEstimate, ScoredTrajectory

NO_CAP = 10**9


def trajectories(rng, n, source, q, proposal_q):
    """Pass with probability q under the reference and proposal_q under the proposal."""
    passed = rng.random(n) < (q if source == "reference" else proposal_q)
    log_ref = np.where(passed, math.log(q), math.log1p(-q)).tolist()
    log_proposal = np.where(passed, math.log(proposal_q), math.log1p(-proposal_q)).tolist()
    return [
        ScoredTrajectory("x", 0, source, "", [1], False, ref if source == "reference" else mu, ref, mu, float(r))
        for ref, mu, r in zip(log_ref, log_proposal, passed, strict=True)
    ]


def bernoulli(rng, q, proposal_q):
    """Draw function of a set of prompts."""
    return lambda prompt, n, source: trajectories(rng, n, source, q[prompt], proposal_q[prompt])


def test_totals_are_proportional_to_the_spread_where_nothing_is_drawn_yet():
    assert allocate([1.0, 2.0, 5.0], np.zeros(3, int), 80, NO_CAP).tolist() == [10, 20, 50]


def test_draws_already_made_count_towards_the_totals():
    # Totals of 30 in proportion 1 : 2 : 3 would be 5, 10, 15, but prompt 0 already has 10: 20 are left for 2 : 3.
    assert allocate([1.0, 2.0, 3.0], np.array([10, 0, 0]), 20, NO_CAP).tolist() == [0, 8, 12]


def test_what_a_cap_cuts_off_goes_to_the_others():
    assert allocate([1.0, 2.0, 3.0], np.zeros(3, int), 18, np.array([99, 99, 6])).tolist() == [4, 8, 6]
    assert allocate([1.0, 2.0], np.array([4, 9]), 100, 10).tolist() == [6, 1]
    assert allocate([0.0, 2.0], np.array([4, 9]), 100, 10).tolist() == [0, 1]
    assert allocate([1.0, 1.0], np.array([20, 9]), 1, 10).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_allocation_minimises_the_total_variance_within_its_limits(seed):
    rng = np.random.default_rng(seed)
    c, counts, cap, budget = rng.lognormal(0, 1, 6), rng.integers(1, 40, 6), 150, 200
    further = allocate(c, counts, budget, cap)
    assert further.sum() == budget
    assert (further >= 0).all() and (counts + further <= cap).all()
    best = minimize(
        lambda n: np.sum(c**2 / (counts + n)),
        np.full(6, budget / 6),
        bounds=[(0, cap - m) for m in counts],
        constraints={"type": "eq", "fun": lambda n: n.sum() - budget},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    # Whole draws may differ from the continuous optimum by less than one each.
    assert np.abs(further - best.x).max() < 1.01
    assert np.sum(c**2 / (counts + further)) <= best.fun * 1.005


def test_bad_arguments_of_an_allocation_are_refused():
    with pytest.raises(DisaError, match="do not agree"):
        allocate([1.0, 2.0], np.zeros(3, int), 5, 10)
    with pytest.raises(DisaError, match="must be finite and not negative"):
        allocate([1.0, math.nan], np.zeros(2, int), 5, 10)
    with pytest.raises(DisaError, match="must be finite and not negative"):
        allocate([1.0, 1.0], np.zeros(2, int), -1, 10)


def test_the_relative_spread_tends_to_that_of_the_mixture():
    beta, n = 5.0, 200_000
    draws = collect_draws(**sample(np.random.default_rng(0), 1, n // 4, 3 * n // 4), beta=beta, reward_range=(0, 1))
    mixture = 0.25 * REFERENCE + 0.75 * PROPOSAL
    w = REFERENCE / mixture
    v = w * PASSES
    c = (mixture @ ((w - 1) * v)) / (mixture @ (w - 1) ** 2)
    exact = (
        np.sqrt(mixture @ (v - c * (w - 1)) ** 2 - (mixture @ v) ** 2)
        * math.expm1(beta)
        / math.exp(exact_log_z(PASSES, beta))
    )
    # Monte Carlo error of a standard deviation and a mean from 30,000 hits: below 1%.
    assert relative_spread(draws, beta) == pytest.approx([exact], rel=0.02)


@pytest.mark.parametrize("hits", [0, 3, 8])
def test_the_prior_of_half_a_hit_keeps_certainty_away(hits):
    draws = collect_draws(
        (np.arange(8) < hits).astype(float),
        prompt_index=np.zeros(8, int),
        log_ref=np.full(8, -1.0),
        from_reference=np.ones(8, bool),
        beta=15.0,
        reward_range=(0, 1),
    )
    q = (hits + 0.5) / 9.0
    expected = math.sqrt(q * (1 - q)) * math.expm1(15) / (1 + math.expm1(15) * q)
    assert relative_spread(draws, 15.0) == pytest.approx([expected], rel=1e-12)
    # At beta 800 exp(beta) overflows, and the limit is the coefficient of variation.
    assert relative_spread(draws, 800.0) == pytest.approx([math.sqrt((1 - q) / q)], rel=1e-12)


def successes(*prompts):
    """Prompts with reference successes of the given log(pi_ref / mu), and one unrewarded draw of each source."""
    ratios = [[*ratios, 0.0, 0.0] for ratios in prompts]
    return collect_draws(
        np.concatenate([[1.0] * (len(of) - 2) + [0.0, 0.0] for of in ratios]),
        prompt_index=np.repeat(np.arange(len(ratios)), [len(of) for of in ratios]),
        log_ref=np.zeros(sum(len(of) for of in ratios)),
        log_proposal=-np.concatenate(ratios),
        from_reference=np.concatenate([[True] * (len(of) - 1) + [False] for of in ratios]),
        beta=15.0,
        reward_range=(0, 1),
    )


def test_the_share_of_least_variance_has_its_limits():
    # The proposal writes every success more often than the reference, as often, or never.
    assert least_variance_share(successes([-2.0, -5.0]), 0.25) == 0.25
    assert least_variance_share(successes([0.0, 0.0]), 0.25) == 0.25
    assert least_variance_share(successes([np.inf, np.inf]), 0.25) == 1.0
    assert least_variance_share(successes([]), 0.25) == 0.25


@pytest.mark.parametrize("k", [5.0, 10.0, 17.0])
def test_the_share_of_least_variance_is_that_of_a_closed_form(k):
    # One success that mu never writes, one that it writes k times as often as the reference. The sum of weights,
    # 1 / alpha + 1 / (alpha + (1 - alpha) k), is smallest where alpha sqrt(k - 1) = k - (k - 1) alpha.
    found = least_variance_share(successes([np.inf, -math.log(k)]), 0.0)
    # Shares are tried in steps of 1/30, and the nearest to the minimum of a convex function is at most one step off.
    assert found == pytest.approx([k / (k - 1 + math.sqrt(k - 1))], abs=1 / 30)


def test_the_share_of_least_variance_minimises_the_second_moment_of_the_mixture():
    # Of the two successes the proposal writes one much more often than the reference, the other hardly ever.
    proposal = np.array([0.3, 0.3, 0.0999, 0.0, 0.3, 0.0001])
    arrays = sample(np.random.default_rng(0), 1, 40_000, 10, proposal=proposal)
    draws = collect_draws(**arrays, beta=15.0, reward_range=(0, 1))

    def moment(alpha):
        mixture = alpha * REFERENCE + (1 - alpha) * proposal
        return mixture @ (REFERENCE / mixture * PASSES) ** 2

    best = min(moment(alpha) for alpha in np.linspace(0.05, 1, 400))
    assert min(moment(0.05), moment(1.0)) > 1.2 * best
    # 40,000 draws and shares in steps of 1/30, around a flat minimum.
    assert moment(least_variance_share(draws, 0.05)[0]) <= 1.01 * best


def test_a_prompt_without_successes_takes_its_share_from_those_of_the_others():
    assert least_variance_share(successes([np.inf] * 3, []), 0.25).tolist() == [1.0, 1.0]
    # One of its own counts, and does not silence them.
    alone, among = (least_variance_share(successes(*p), 0.0)[0] for p in ([[-9.0]], [[-9.0], [np.inf]]))
    assert alone == 0.0 < among < 1.0


def test_at_a_moderate_divergence_further_draws_come_from_both_and_mostly_from_the_reference():
    rng, q, d = np.random.default_rng(0), 0.2, 2.0

    def draw(prompt, n, source):
        sign = 1.0 if source == "reference" else -1.0
        passed = rng.random(n) < (q if sign > 0 else 0.5)
        odds = np.where(passed, math.log(q / 0.5), math.log((1 - q) / 0.5))
        ratio = (odds + rng.normal(sign * d, math.sqrt(2 * d), n)).tolist()
        return [
            ScoredTrajectory("x", 0, source, "", [1], False, 0.0, 0.0, -at, float(r))
            for at, r in zip(ratio, passed, strict=True)
        ]

    settings = {"prompts": 40, "budget": 40 * 64, "pilot": 16, "cap": 256, "beta": 15.0, "precision": 0.01}
    result = adaptive_budget(draw, **settings)
    further = result.estimates.n - 16
    from_reference = (result.estimates.n_reference - 4) / np.maximum(further, 1)
    # E_ref[w | success] with log ratios of mean 2 + log(0.4) and variance 4 is smallest at a share of 0.8, which the
    # whole of the draws is brought to, the pilot's 16 with a quarter included.
    assert 0.7 < np.average(from_reference, weights=further) < 1.0
    exact = math.log1p(math.expm1(15.0) * q)
    error = np.sqrt(np.mean((result.estimates.log_z - exact) ** 2))
    # The pass rate of 64 draws has a relative error of sqrt(0.8 / 0.2 / 64) = 0.25; 40 prompts know theirs to 11%.
    assert error < 0.25 * 1.15 * 1.2


@pytest.fixture(scope="module")
def mixed():
    """Sixty prompts of mixed difficulty, half of them with a better proposal, spent in full."""
    rng = np.random.default_rng(1)
    q = np.exp(rng.uniform(np.log(0.005), np.log(0.6), 60))
    settings = {"prompts": 60, "budget": 60 * 48, "pilot": 16, "cap": 150, "beta": 15.0, "precision": 0.01}
    proposal_q = np.where(np.arange(60) < 30, np.minimum(3 * q, 0.9), q)
    return q, settings, adaptive_budget(bernoulli(rng, q, proposal_q), **settings)


def test_the_budget_is_spent_within_the_cap_and_harder_prompts_get_more(mixed):
    q, settings, result = mixed
    counts = np.array([len(rows) for rows in result.draws])
    assert result.spent == counts.sum() == settings["budget"]
    assert counts.min() >= settings["pilot"] and counts.max() <= settings["cap"]
    assert counts[q < 0.02].mean() > 2 * counts[q > 0.3].mean()
    assert np.array_equal(result.capped, counts == settings["cap"])
    assert result.capped.any()


def test_the_estimates_are_those_of_all_the_draws_pooled(mixed):
    _, settings, result = mixed
    arrays = trajectory_arrays(result.draws)
    assert np.array_equal(estimate_log_partition_batch(**arrays, beta=15.0).log_z, result.estimates.log_z)
    reference = np.array([sum(row.source == "reference" for row in rows) for rows in result.draws])
    assert np.array_equal(result.estimates.n_reference, reference)
    # A prompt whose gate never closed holds its share; none has less.
    shares = np.ceil(0.25 * result.estimates.n)
    assert (reference >= shares).all()
    assert np.mean(reference == shares) > 0.5


def test_a_prompt_that_reached_the_precision_gets_no_more():
    q = np.array([0.9, 0.02])
    result = adaptive_budget(
        bernoulli(np.random.default_rng(2), q, q),
        prompts=2,
        budget=2000,
        pilot=64,
        cap=400,
        beta=15.0,
        precision=0.2,  # 25 effective hits
    )
    assert len(result.draws[0]) == 64
    assert 64 < len(result.draws[1]) <= 400
    assert result.spent < 2000
    assert result.capped.tolist() == [False, bool(result.estimates.hits_ess[1] < 25)]


def test_a_gated_prompt_gets_further_draws_from_the_reference_alone():
    q = np.full(4, 0.5)
    proposal_q = np.array([1e-6, 1e-6, 0.5, 0.5])  # two proposals never write a solution
    result = adaptive_budget(
        bernoulli(np.random.default_rng(3), q, proposal_q),
        prompts=4,
        budget=800,
        pilot=32,
        cap=300,
        beta=15.0,
        precision=0.01,
    )
    proposal_draws = result.estimates.n - result.estimates.n_reference
    assert proposal_draws[:2].tolist() == [24, 24]
    assert (result.estimates.n_reference[:2] > 8).all()
    assert ["gated" in flags for flags in result.estimates.flags] == [True, True, False, False]


def normal(rng, q, shift):
    """Reference N(0, 1), proposal N(shift, 1), passed above the threshold that the reference passes with q."""

    def draw(prompt, n, source):
        y = rng.normal(0.0 if source == "reference" else shift[prompt], 1.0, n)
        return [
            ScoredTrajectory("x", 0, source, "", [1], False, ref if source == "reference" else mu, ref, mu, float(r))
            for ref, mu, r in zip(
                (-0.5 * y**2).tolist(), (-0.5 * (y - shift[prompt]) ** 2).tolist(), y > -ndtri(q[prompt]), strict=True
            )
        ]

    return draw


@pytest.mark.parametrize("beta", [10.0, 15.0])
def test_adaptive_beats_uniform_allocation_where_a_third_of_the_proposals_mislead(beta):
    prompts, gains = 80, []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        q = np.exp(rng.uniform(np.log(0.001), np.log(0.5), prompts))
        draw = normal(rng, q, np.where(np.arange(prompts) % 3 == 0, -2.0, -rng.random(prompts) * ndtri(q)))
        truth = np.log1p(np.expm1(beta) * q)
        settings = {"prompts": prompts, "budget": 64 * prompts, "beta": beta, "precision": 1e-3}
        adaptive = adaptive_budget(draw, pilot=16, cap=512, **settings)
        even = adaptive_budget(draw, pilot=64, cap=64, **settings)
        assert adaptive.spent == even.spent == 64 * prompts
        gains.append(np.mean((even.estimates.log_z - truth) ** 2) - np.mean((adaptive.estimates.log_z - truth) ** 2))
    # Better by more than three standard errors over the replicates.
    assert np.mean(gains) > 3 * np.std(gains, ddof=1) / math.sqrt(len(gains))


def test_the_bias_from_adapting_sizes_is_the_stated_one():
    q, prompts, pilot, per_prompt, excess = 0.3, 8000, 32, 64, []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rewards = (rng.random((prompts, pilot)) < q).astype(float)
        draws = collect_draws(
            rewards.ravel(),
            prompt_index=np.repeat(np.arange(prompts), pilot),
            log_ref=np.zeros(rewards.size),
            from_reference=np.ones(rewards.size, dtype=bool),
            beta=15.0,
            reward_range=(0, 1),
        )
        budget = (per_prompt - pilot) * prompts
        limits = {"cap": NO_CAP, "b": 15.0, "reference_share": 1.0, "precision": 1e-3, "outlook": 0.0}
        further, _ = next_round(draws, budget, **limits)
        hits = rewards.sum(axis=1) + rng.binomial(further, q)
        excess.append(np.mean(hits / (pilot + further)) - q)
    # c = sqrt((1 - q) / q), so d log N / d log q = -1 / (2 (1 - q)), and a relative bias of 1 / (2 N q).
    stated = q / (2 * per_prompt * q)
    error = np.std(excess, ddof=1) / math.sqrt(len(excess))
    # Three standard errors are a tenth of it, and the next order, 1 / N^2, is not seen.
    assert error < 0.04 * stated
    assert np.mean(excess) == pytest.approx(stated, abs=3 * error)


def test_a_planned_round_is_the_budgets_round_and_numbers_its_draws_onwards():
    rng = np.random.default_rng(5)
    q = np.exp(rng.uniform(np.log(0.02), np.log(0.5), 6))
    pilot = [
        [
            dataclasses.replace(row, prompt_id=f"p{i}", draw=draw)
            for source, n in (("reference", 4), ("proposal", 12))
            for draw, row in enumerate(trajectories(rng, n, source, q[i], min(2 * q[i], 0.9)))
        ]
        for i in range(6)
    ]
    flat = [row for rows in pilot for row in rows]
    sampling = {"beta": 15.0, "reward_range": (0.0, 1.0)}
    limits = {"cap": 200, "reference_share": 0.25, "precision": 0.01}
    plan = plan_round(flat, budget=300, outlook=36.0, **limits, **sampling)
    sizes = next_round(collect_draws(**trajectory_arrays(pilot), **sampling), 300, b=15.0, outlook=36.0, **limits)
    for source, first, wanted in zip(("reference", "proposal"), (4, 12), sizes, strict=True):
        assert [plan[f"p{i}"][source] for i in range(6)] == [range(first, first + n) for n in wanted]
    assert sum(len(draws) for of in plan.values() for draws in of.values()) == 300
    # The order in which trajectories are listed is nobody's business.
    assert plan_round(flat[::-1], budget=300, outlook=36.0, **limits, **sampling) == plan


def test_undecided_draws_are_counted_numbered_and_otherwise_left_alone():
    rng = np.random.default_rng(6)
    rows = [
        dataclasses.replace(row, prompt_id=f"p{i}", draw=draw)
        for i in range(3)
        for source, n in (("reference", 4), ("proposal", 12))
        for draw, row in enumerate(trajectories(rng, n, source, 0.3, 0.5))
    ]
    # Of p0 two reference draws stay undecided, of p1 all draws.
    rows = [
        dataclasses.replace(row, reward=None)
        if row.prompt_id == "p1" or (row.prompt_id, row.source) == ("p0", "reference") and row.draw < 2
        else row
        for row in rows
    ]
    limits = {"cap": 30, "reference_share": 0.25, "precision": 0.01, "outlook": 36.0}
    plan = plan_round(rows, budget=300, **limits, beta=15.0, reward_range=(0.0, 1.0))
    assert plan.keys() == {"p0", "p2"}
    assert all((plan[p]["reference"].start, plan[p]["proposal"].start) == (4, 12) for p in plan)
    # Both go to the cap, of which the undecided draws are a part.
    assert [sum(len(r) for r in plan[p].values()) for p in ("p0", "p2")] == [14, 14]
    none = [dataclasses.replace(row, reward=None) for row in rows]
    assert plan_round(none, budget=300, **limits, beta=15.0, reward_range=(0.0, 1.0)) == {}


def test_a_budget_is_not_allocated_without_the_proposals_word_on_every_draw():
    rows = trajectories(np.random.default_rng(7), 4, "reference", 0.3, 0.5)
    rows[1] = dataclasses.replace(rows[1], log_proposal=None)
    limits = {"cap": 30, "reference_share": 0.25, "precision": 0.01, "outlook": 36.0}
    with pytest.raises(DisaError, match="1 of 4 trajectories have no log-prob.*set proposals.adaptive: null"):
        plan_round(rows, budget=9, **limits, beta=15.0, reward_range=(0.0, 1.0))


def test_what_a_budget_came_to_counts_prompts_that_reached_the_precision_and_the_cap():
    row = PartitionEstimate("x", "train", 1.0, 0.5, 0.5, 1.5, 16, 4, 0.5, 9.0, 0.0, 1.0, None, "mixture", [])
    # Of the last but one only 60 draws were decided: all that were drawn count.
    cases = ((16, 16, 100.0), (64, 64, 30.0), (64, 60, 99.9), (40, 40, 3.0))
    rows = [dataclasses.replace(row, prompt_id=f"p{i}", n=n, hits_ess=hits) for i, (_, n, hits) in enumerate(cases)]
    made = {(f"p{i}", "reference"): 4 for i in range(4)} | {
        (f"p{i}", "proposal"): m - 4 for i, (m, *_) in enumerate(cases)
    }
    assert stopped_at_cap(rows, made, cap=64, precision=0.1) == {"p1", "p2"}
    assert stopped_at_cap([], made, cap=64, precision=0.1) == set()
    found = spent_budget(rows, made, cap=64, precision=0.1)
    assert found == {
        "trajectories": 184,
        "from_reference": 16,
        "prompts": 4,
        "fewest": 16,
        "median": 52.0,
        "most": 64,
        "cap": 64,
        "precision": 0.1,
        "reached": 1,
        "capped": 2,
    }


def some_rows(counts):
    """Rows without rewards by (prompt, source): plans look at how many there are."""
    return [
        ScoredTrajectory(p, draw, source, "", [1], False, -1.0, -1.0, -1.0, None)
        for (p, source), n in counts.items()
        for draw in range(n)
    ]


def test_resampling_doubles_what_each_source_drew_for_prompts_that_want_draws():
    rows = some_rows({("a", "reference"): 2, ("a", "proposal"): 6, ("b", "reference"): 4, ("c", "proposal"): 5})
    flags = {"a": ("gated", "few_hits"), "b": ("missing_mass",), "c": ("wide_interval", "no_reference")}
    assert resample_flagged(rows, flags) == {
        "a": {"reference": range(2, 4), "proposal": range(6, 12)},
        "b": {"reference": range(4, 8), "proposal": range(0)},
        "c": {"reference": range(0), "proposal": range(5, 10)},
    }


@pytest.mark.parametrize("flags", [(), ("gated",), ("heavy_tail", "no_reference"), ("text_level",), ("predicted",)])
def test_resampling_leaves_alone_what_draws_of_the_same_models_do_not_mend(flags):
    assert resample_flagged(some_rows({("a", "reference"): 2}), {"a": flags}) == {}


def test_what_drawing_again_came_to_counts_draws_and_the_prompts_still_flagged():
    flags = {"a": ["few_hits"], "b": ["gated"], "c": ["wide_interval", "text_level"]}
    estimates = [
        PartitionEstimate(p, "train", 0.0, 0.1, 0.0, 0.0, 1, 1, 0.0, 1.0, 1.0, 1.0, None, "mixture", flags[p])
        for p in flags
    ]
    made = {("a", "reference"): 8, ("a", "proposal"): 24, ("b", "proposal"): 8, ("c", "reference"): 16}
    found = spent_resampling(estimates, made)
    assert (found["trajectories"], found["from_reference"], found["still_flagged"]) == (56, 24, 2)
    assert (found["fewest"], found["median"], found["most"]) == (8, 16.0, 32)
