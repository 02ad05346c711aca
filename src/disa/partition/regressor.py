"""Regress log Z on the prompt: a prompt with few hits borrows strength from prompts like it.

The soft success probability q of prompt x with standardised features f(x) has a logit-normal law, and its
hits are binomial (empirical Bayes; a generalised linear mixed model, Breslow and Clayton 1993)::

    logit q = a + c . f(x) + s u,   u ~ N(0, 1),   k ~ Binomial(n, q),   c_j ~ N(0, (g / rms|f|)^2)

a, c and s maximise the marginal likelihood, u integrated out. g, the prior standard deviation of c . f over
prompts (the ridge; g = 0 ignores the features), maximises the marginal likelihood of prompts left out of the
fit. On those left-out prompts, a, the length of c and s are then set again: s there also carries the error
of a + c . f.
The estimate is the posterior mean of log Z, not log Z at the posterior mean of q.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_expit

from disa.errors import DisaError
from disa.partition.log_weights import Array, soft_success
from disa.partition.logit_normal import central_interval, posterior_nodes
from disa.runs.files import whole_file

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class LogZPosterior:
    """Posterior of log Z, one entry per prompt."""

    log_z: Array
    """Posterior mean, nats."""
    q: Array
    """The q at which log Z is that mean: ``Z = exp(beta r_min) (1 + expm1(beta (r_max - r_min)) q)``."""
    interval_low: Array
    interval_high: Array
    """Central posterior interval for log Z, nats."""


@dataclasses.dataclass(frozen=True)
class Regressor:
    """A fitted prompt -> log Z regression.

    Features are standardised by ``centre`` and ``scale`` over the ``prompts`` of the fit; ``weights`` is c,
    ``intercept`` a, ``width`` s and ``signal_sd`` g, all in logits. ``constant_mean`` and ``constant_width`` are mean
    and width of logit q over prompts when the features are ignored.
    """

    centre: Array
    scale: Array
    weights: Array
    intercept: float
    width: float
    signal_sd: float
    constant_mean: float
    constant_width: float
    prompts: int
    features_fingerprint: str

    def mean_logit(self, features: ArrayLike) -> Array:
        """Prior mean of logit q, shape (prompts,), of prompts with features of shape (prompts, d)."""
        features = check_features(features, len(self.weights))
        return self.intercept + ((features - self.centre) / self.scale) @ self.weights

    def predict(
        self, features: ArrayLike, *, beta: float, reward_range: tuple[float, float] = (0.0, 1.0), level: float = 0.9
    ) -> LogZPosterior:
        """Log Z of prompts without any draws: :meth:`posterior` with n = 0."""
        none = np.zeros(len(np.asarray(features)))
        return self.posterior(none, none, features, beta=beta, reward_range=reward_range, level=level)

    def posterior(
        self,
        k: ArrayLike,
        n: ArrayLike,
        features: ArrayLike,
        *,
        beta: float,
        reward_range: tuple[float, float] = (0.0, 1.0),
        level: float = 0.9,
    ) -> LogZPosterior:
        """Posterior of log Z given a prompt's own (pseudo-)counts and its features, at a two-sided ``level``.

        ``k`` hits of ``n`` draws are those of :func:`disa.partition.regressor_fit.pseudo_counts`. Rewards of 0 and 1
        have the same q at every beta; graded ones need the beta of the counts that the regressor was fitted on. Raises
        DisaError where shapes differ, counts are not 0 <= k <= n, or features are not finite.
        """
        mean = self.mean_logit(features)
        k, n = check_counts(k, n, len(mean))
        return log_z_posterior(k, n, mean, self.width, beta=beta, reward_range=reward_range, level=level)

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file that appears whole or not at all."""
        values = dataclasses.asdict(self)
        arrays = {name: values.pop(name) for name in ("centre", "scale", "weights")}
        arrays["header"] = np.array(json.dumps({"format": FORMAT, **values}))
        # As numpy.savez, but without the time of writing, so that equal regressors are equal files.
        with whole_file(Path(path)) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())

    @classmethod
    def load(cls, path: str | Path, *, features_fingerprint: str) -> Regressor:
        """Read a regressor for features of the given fingerprint.

        Raises DisaError where the file is missing or no regressor, or was fitted on other features.
        """
        path = Path(path)
        try:
            # Opened here: numpy leaves the file open when it is not a whole archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                header = json.loads(str(stored["header"]))
                arrays = {name: stored[name] for name in ("centre", "scale", "weights")}
            found = header.pop("format")
        except FileNotFoundError as error:
            raise DisaError("file not found", where=str(path), fix="fit a regressor and save it there") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DisaError("not a saved regressor", where=str(path), fix="fit and save it again") from error
        if found != FORMAT:
            raise DisaError(f"format {found}, expected {FORMAT}", where=str(path), fix="fit and save it again")
        if header["features_fingerprint"] != features_fingerprint:
            raise DisaError(
                f"features_fingerprint is {header['features_fingerprint']}, the features given have "
                f"{features_fingerprint}",
                where=str(path),
                fix="compute the features with the reference, tokenizer and template of the fit, or fit again",
            )
        return cls(**arrays, **header)


def log_z_posterior(
    k: Array,
    n: Array,
    mean: Array,
    width: float,
    *,
    beta: float,
    reward_range: tuple[float, float] = (0.0, 1.0),
    level: float = 0.9,
) -> LogZPosterior:
    """Posterior of log Z under a logit-normal prior with given mean and width.

    ``log Z = beta r_min + log(sigma(-t) + exp(b) sigma(t))`` with ``b = beta (r_max - r_min)`` at t = logit q.
    """
    low = reward_range[0]
    b = beta * (reward_range[1] - low)

    def log_z(t: Array) -> Array:
        return beta * low + np.logaddexp(log_expit(-t), b + log_expit(t))

    nodes, probabilities, _ = posterior_nodes(k, n, mean, width)
    estimate = (log_z(nodes) * probabilities).sum(axis=1)
    ends = central_interval(nodes, probabilities, level)
    q = soft_success(estimate / beta, beta, reward_range)
    return LogZPosterior(log_z=estimate, q=q, interval_low=log_z(ends[0]), interval_high=log_z(ends[1]))


def check_features(features: ArrayLike, width: int | None) -> Array:
    """Return the features as float64 of shape (prompts, d), or refuse them."""
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or (width is not None and array.shape[1] != width):
        expected = "d" if width is None else width
        fix = "pass one row per prompt, of disa.partition.features.prompt_features"
        raise DisaError(f"features have shape {array.shape}, expected (prompts, {expected})", fix=fix)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise DisaError(
            "features are not finite",
            where=f"features, prompt {int(np.argmin(finite))}",
            fix="leave the prompt out, or compute its features in float32",
        )
    return array


def check_counts(k: ArrayLike, n: ArrayLike, prompts: int) -> tuple[Array, Array]:
    """Return the counts as float64, or refuse them."""
    k, n = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if k.shape != (prompts,) or n.shape != (prompts,):
        fix = "pass one count per prompt"
        raise DisaError(f"k and n have shapes {k.shape} and {n.shape}, expected ({prompts},)", fix=fix)
    good = (k >= 0) & (k <= n) & np.isfinite(n)
    if not good.all():
        first = int(np.argmin(good))
        raise DisaError(
            f"k = {k[first]} and n = {n[first]}, expected 0 <= k <= n",
            where=f"counts, prompt {first}",
            fix="pass the successes as k and all draws as n",
        )
    return k, n
