"""The weight of a success that no draw has shown, against its formula written out prompt by prompt."""

import numpy as np
import pytest
from six_outcomes import GRADES, PASSES, PROPOSAL, REFERENCE

from disa.partition.draws import collect_draws
from disa.partition.unseen_weight import hit_weight, unseen_weight

BETA = 3.0


def batch(sizes, rewards, rng, lengths=True):
    """Prompts of (reference draws, proposal draws), as arguments of the estimators."""
    columns = {name: [] for name in ("rewards", "prompt_index", "log_ref", "log_proposal", "from_reference", "lengths")}
    for prompt, (reference, proposal) in enumerate(sizes):
        drawn = [
            *rng.choice(6, reference, p=REFERENCE),
            *rng.choice(6, proposal, p=PROPOSAL),
        ]
        tilt = rng.normal(size=6)  # every prompt has a proposal of its own
        for i, outcome in enumerate(drawn):
            columns["rewards"].append(rewards[outcome])
            columns["prompt_index"].append(prompt)
            columns["log_ref"].append(np.log(REFERENCE[outcome]))
            columns["log_proposal"].append(np.log(PROPOSAL[outcome]) + tilt[outcome])
            columns["from_reference"].append(i < reference)
            columns["lengths"].append(float(rng.integers(3, 12)))
    columns["from_reference"] = np.array(columns["from_reference"], dtype=bool)
    if not lengths:
        del columns["lengths"]
    return columns


def by_hand(columns, n_prompts):
    """Every prompt's w0, from the formula in the docstring."""
    prompt, source = np.array(columns["prompt_index"]), columns["from_reference"]
    log_ratio = np.array(columns["log_ref"]) - np.array(columns["log_proposal"])
    s = np.expm1(BETA * np.array(columns["rewards"])) / np.expm1(BETA)
    of = [prompt == x for x in range(n_prompts)]
    w, typical, w_bar, evidence = np.empty(len(s)), [], [], []
    for own in of:
        n, reference = own.sum(), (own & source).sum()
        alpha = reference / n
        # pi_ref over the mixture; a proposal that was not drawn from has no share in it.
        w[own] = 1.0 / (alpha + (1 - alpha) * np.exp(-log_ratio[own]))
        typical.append(n * np.sum(w[own] ** 2) / np.sum(w[own]) ** 2)
        hits = np.sum(w[own] * s[own])
        w_bar.append(np.sum((w[own] * s[own]) ** 2) / hits if hits > 0 else 0.0)
        both = own & source if 0 < reference < n else np.zeros(len(s), dtype=bool)
        p = (s[both].sum() + 0.5) / (reference + 1)
        positive = s[both][s[both] > 0]
        sums = np.sum(s[both] * (log_ratio[both] - np.log(p))) + np.sum(positive * np.log(positive))
        tokens = np.array(columns["lengths"]) if "lengths" in columns else np.ones(len(s))
        drawn = tokens[own & source]
        evidence.append((sums, np.sum(s[both] * tokens[both]), drawn.mean() if len(drawn) else 0.0))
    weights = []
    for x, own in enumerate(of):
        n, reference = own.sum(), (own & source).sum()
        others = [evidence[y] for y in range(n_prompts) if y != x]
        tokens = sum(e[1] for e in others)
        missed = 1.0
        if "lengths" in columns and tokens > 0:
            d = max(sum(e[0] for e in others) / tokens * evidence[x][2], 0.0)
            missed = np.exp(-(n - reference) * np.exp(-(d + 1.0)))
        if reference == 0:
            missed = 0.0
        found = [np.log(w_bar[y]) for y in range(n_prompts) if y != x and w_bar[y] > 0]
        w_found = np.exp(np.mean(found)) if found else typical[x]
        w_found = min(max(w_found, min(0.02, typical[x])), typical[x])
        weights.append(typical[x] ** missed * w_found ** (1 - missed))
    return weights, w_bar


@pytest.mark.parametrize("rewards", [PASSES, GRADES], ids=["binary", "graded"])
@pytest.mark.parametrize("lengths", [True, False], ids=["lengths", "no lengths"])
def test_it_is_the_formula_prompt_by_prompt(rewards, lengths):
    rng = np.random.default_rng(0)
    sizes = [(4, 12), (1, 12), (1, 3), (0, 8), (16, 0), (2, 40), (30, 1), (8, 8), (3, 2)]
    seen = set()
    for _ in range(20):
        columns = batch(sizes, rewards, rng, lengths)
        draws = collect_draws(**columns, beta=BETA, reward_range=(0, 1))
        expected, w_bar = by_hand(columns, len(sizes))
        # The same float64 sums in another order.
        np.testing.assert_allclose(unseen_weight(draws), expected, rtol=1e-11)
        np.testing.assert_allclose(hit_weight(draws, np.exp(draws.log_w) * draws.soft), w_bar, rtol=1e-11)
        seen |= {weight > 0 for weight in w_bar}
    assert rewards is GRADES or seen == {True, False}


def test_one_prompt_alone_has_the_weight_of_a_typical_draw():
    columns = batch([(4, 12)], np.zeros(6), np.random.default_rng(1))
    draws = collect_draws(**columns, beta=BETA, reward_range=(0, 1))
    w = np.exp(draws.log_w)
    assert unseen_weight(draws)[0] == pytest.approx(16 * np.sum(w**2) / np.sum(w) ** 2, rel=1e-12)


def test_light_hits_elsewhere_are_bounded_by_a_fiftieth_of_a_reference_draw():
    # 40 proposal draws of 30 nats less weight succeed in the other prompt: taken at their word, w0 would be e^-30.
    columns = {
        "rewards": [1.0] * 40 + [0.0] * 2 + [0.0] * 40 + [1.0] * 2,
        "prompt_index": [0] * 42 + [1] * 42,
        "log_ref": [-50.0] * 84,
        "log_proposal": [-20.0] * 40 + [-50.0] * 2 + [-50.0] * 42,
        "from_reference": np.array(([False] * 40 + [True] * 2) * 2),
        "lengths": [10.0] * 84,
    }
    draws = collect_draws(**columns, beta=BETA, reward_range=(0, 1))
    second = unseen_weight(draws)[1]
    assert second == pytest.approx(by_hand(columns, 2)[0][1], rel=1e-11)
    assert second >= 0.02
