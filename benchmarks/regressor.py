"""The regressor of log Z against estimates from each prompt's own draws, on simulated prompts.

500 prompts with 16 normal features and ``logit q = -2.5 + 2 c . f + e``, c a random direction of length 1 and e
standard normal; N reference draws each. ``carried`` fits to these features, ``nothing`` to features drawn anew.
Every method sees the same counts. RMSE of log Z in nats, with standard errors over seeds; coverage is that of
nominal 90% intervals::

    OMP_NUM_THREADS=1 python benchmarks/regressor.py --seeds 10
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from disa.partition.log_weights import log_z_from_q
from disa.partition.regressor import log_z_posterior
from disa.partition.regressor_fit import fit_regressor
from disa.partition.regressor_report import report_regressor
from page import fill, spread, table

Array = NDArray[np.float64]
PROMPTS, FEATURES = 500, 16
SIZES = (8, 32)
BETAS = (5.0, 15.0)
RANGE = (0.0, 1.0)


def rmse(estimate: Array, truth: Array) -> float:
    """Root mean squared error over prompts."""
    return float(np.sqrt(np.mean((estimate - truth) ** 2)))


def replicate(seed: int, n_draws: int, beta: float, carried: bool) -> dict[str, float]:
    """Fit on 500 prompts, and judge these and 500 held-out ones."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=FEATURES)
    features = rng.normal(size=(2 * PROMPTS, FEATURES))
    signal = 2.0 * features @ direction / np.linalg.norm(direction)
    q = expit(-2.5 + signal + rng.normal(size=2 * PROMPTS))
    k = rng.binomial(n_draws, q).astype(np.float64)
    if not carried:
        features = rng.normal(size=features.shape)
    log_z = log_z_from_q(q, beta, RANGE)
    fit, new = slice(PROMPTS), slice(PROMPTS, None)
    n = np.full(PROMPTS, float(n_draws))

    regressor = fit_regressor(k[fit], n, features[fit], features_fingerprint="simulated")
    posterior = regressor.posterior(k[fit], n, features[fit], beta=beta)
    predicted = regressor.predict(features[new], beta=beta)
    constant = np.full(PROMPTS, regressor.constant_mean)
    pooled = log_z_posterior(k[fit], n, constant, regressor.constant_width, beta=beta)
    report = report_regressor(regressor, k[new], n, features[new], beta=beta)
    covered = (posterior.interval_low <= log_z[fit]) & (log_z[fit] <= posterior.interval_high)
    return {
        "Jeffreys": rmse(log_z_from_q((k[fit] + 0.5) / (n + 1.0), beta, RANGE), log_z[fit]),
        "no features": rmse(pooled.log_z, log_z[fit]),
        "regressor": rmse(posterior.log_z, log_z[fit]),
        "unseen: constant": rmse(np.full(PROMPTS, log_z[fit].mean()), log_z[new]),
        "unseen: regressor": rmse(predicted.log_z, log_z[new]),
        "coverage": float(covered.mean()),
        "coverage, report": report.coverage,
        "R2 logit q": report.r2_logit_q,
    }


def main() -> None:
    """Measure every setting and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    table_rows, ratios, names = [], {}, []
    for carried in (True, False):
        for beta in BETAS:
            for n_draws in SIZES:
                rows = [replicate(seed, n_draws, beta, carried) for seed in range(options.seeds)]
                names = list(rows[0])
                columns = {name: np.array([row[name] for row in rows]) for name in names}
                ratios[carried, beta, n_draws] = columns["regressor"] / columns["Jeffreys"]
                first = ["the difficulty" if carried else "nothing", f"{beta:g}", n_draws]
                cells = [spread(columns[name]) for name in names]
                table_rows.append([*first, *cells, spread(ratios[carried, beta, n_draws], 2)])
                print(*table_rows[-1], sep=" | ", flush=True)
    useful = [np.mean(r) for (carried, _, n), r in ratios.items() if carried and n == min(SIZES)]
    useless = [np.mean(r) for (carried, _, _), r in ratios.items() if not carried]
    text = [
        f"Written by `python benchmarks/regressor.py --seeds {options.seeds}`: {PROMPTS} prompts of the fit and "
        f"{PROMPTS} unseen ones, {FEATURES} features, N reference draws per prompt; RMSE of log Z in nats, mean and "
        f"standard error over seeds 0 to {options.seeds - 1}. *coverage* is that of nominal 90% intervals of the "
        "regressor for the prompts of the fit, *coverage, report* what its own report says of unseen prompts' counts.",
        "",
        f"- Features that carry the difficulty, N = {min(SIZES)}: error at most {max(useful):.2f} of Jeffreys'"
        " (asked for: 0.75).",
        f"- Features that carry nothing: error at most {max(useless):.2f} of Jeffreys' (asked for: 1.05).",
        "",
        *table(["features carry", "beta", "N", *names, "regressor / Jeffreys"], table_rows),
    ]
    fill("regressor", "\n".join(text))


if __name__ == "__main__":
    main()
