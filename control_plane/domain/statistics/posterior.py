"""What is believed of one value, and how to integrate over it: rates are Beta, means and ratios normal.

The module hides the coordinate. A rate is integrated over in its log-odds, where any Beta is smooth, however few or
many its counts: near 0 and near 1, where a float has no digits left for 1 - θ, and with a prior below 1, whose
density has no limit there. Normals are integrated over as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import scipy
from numpy.typing import NDArray

from control_plane.domain.statistics.proportions import Interval

Floats = NDArray[np.float64]

_NODES, _WEIGHTS = (np.asarray(part) for part in np.polynomial.legendre.leggauss(20))
_TAIL = 10.0 ** np.array([-18, -16, -14, -12, -10, -8, -7, -6, -5, -4, -3, -2, -1])
_BODY = np.array([0.2, 0.3, 0.5])
_LEVELS = np.concatenate([_TAIL, _BODY])
_WIDEST = 5.0
"""Of a panel in log-odds: what is smooth between two quantiles may still turn in a wide gap between two arms."""
INTEGRATED = 1e6
"""Counts from which on a rate's distribution function is the integral of its density: scipy's incomplete beta
loses a digit with every factor of ten beyond it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beta:
    """A Beta distribution of a rate: `a` successes and `b` failures, prior included; both above 0.

    Its coordinate t is the log-odds, θ = 1/(1 + exp(-t)).
    """

    a: float
    b: float

    def turned(self) -> "Beta":
        """What is believed of 1 - θ, which is better where less is better."""
        return Beta(a=self.b, b=self.a)

    def below(self, t: Floats) -> Floats:
        """P(θ ≤ θ(t))."""
        return np.asarray(scipy.special.betainc(self.a, self.b, scipy.special.expit(t)))

    def above(self, t: Floats) -> Floats:
        """P(θ > θ(t)), small ones too to 10⁻¹¹ of themselves."""
        # Of 1 - θ: `betaincc` of scipy 1.17 and older takes fifteen times as long.
        return np.asarray(scipy.special.betainc(self.b, self.a, scipy.special.expit(-t)))

    def quantiles(self, levels: Floats) -> tuple[Floats, Floats]:
        """The values that leave so much below, and those that leave so much above."""
        low, high = (
            inverse(self.a, self.b, levels)
            for inverse in (scipy.special.betaincinv, scipy.special.betainccinv)
        )
        return np.asarray(low), np.asarray(high)

    def edges(self) -> Floats:
        """Coordinates between which the density is smooth, from one far tail to the other."""
        found = []
        for one, sign in ((self, 1), (self.turned(), -1)):
            near = scipy.special.betaincinv(one.a, one.b, _LEVELS)
            rest = scipy.special.betainccinv(one.b, one.a, _LEVELS)
            with np.errstate(divide="ignore"):
                found.append(sign * (np.log(near) - np.where(near < 0.5, np.log1p(-near), np.log(rest))))
        both: Floats = np.concatenate(found)
        return np.asarray(both[np.isfinite(both)])

    def log_density(self, t: Floats) -> Floats:
        """Of the coordinate, relative to that at the mean's: large counts lose no digits."""
        share, rest = self.a / (self.a + self.b), self.b / (self.a + self.b)
        away = t - log(self.a / self.b)
        with np.errstate(over="ignore"):
            found: Floats = -self.a * np.log1p(rest * np.expm1(-away)) - self.b * np.log1p(
                share * np.expm1(away)
            )
        return found

    def slope(self, t: Floats) -> Floats:
        """dθ/dt."""
        return np.asarray(scipy.special.expit(t) * scipy.special.expit(-t))


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """A normal distribution of a mean or a ratio, in its units; `variance` above 0. Its coordinate is the value."""

    mean: float
    variance: float

    def turned(self) -> "Normal":
        """What is believed of -θ."""
        return Normal(mean=-self.mean, variance=self.variance)

    def below(self, t: Floats) -> Floats:
        """P(θ ≤ t)."""
        return np.asarray(scipy.special.ndtr((t - self.mean) / sqrt(self.variance)))

    def above(self, t: Floats) -> Floats:
        """P(θ > t), with all its digits."""
        return np.asarray(scipy.special.ndtr((self.mean - t) / sqrt(self.variance)))

    def quantiles(self, levels: Floats) -> tuple[Floats, Floats]:
        """The values that leave so much below, and those that leave so much above."""
        away = scipy.special.ndtri(levels) * sqrt(self.variance)
        return np.asarray(self.mean + away), np.asarray(self.mean - away)

    def edges(self) -> Floats:
        """Coordinates between which the density is smooth, from one far tail to the other."""
        return np.concatenate(self.quantiles(_LEVELS))

    def log_density(self, t: Floats) -> Floats:
        """Relative to the mean's."""
        found: Floats = -((t - self.mean) ** 2) / self.variance / 2
        return found

    def slope(self, t: Floats) -> Floats:
        """1: the coordinate is the value."""
        return np.ones_like(t)


Posterior = Beta | Normal


def credible_interval(posterior: Posterior, *, alpha: float) -> Interval:
    """The interval that leaves alpha/2 of the posterior on either side."""
    low, high = posterior.quantiles(np.array([alpha / 2]))
    return Interval(low=float(low[0]), high=float(high[0]))


def nodes(edges: Floats, *, rates: bool) -> tuple[Floats, Floats]:
    """Composite Gauss-Legendre nodes and weights between the edges; of rates wide gaps are divided."""
    edges = np.unique(edges)
    if rates:
        parts = np.ceil(np.diff(edges) / _WIDEST).astype(int)
        inner = [np.linspace(edges[at], edges[at + 1], n + 1)[1:-1] for at, n in enumerate(parts) if n > 1]
        edges = np.unique(np.concatenate([edges, *inner]))
    half = np.diff(edges) / 2
    return (edges[:-1, None] + half[:, None] * (1 + _NODES)).ravel(), (half[:, None] * _WEIGHTS).ravel()


def _running() -> Floats:
    """∫ from -1 to each node, of the polynomial through given values at all nodes: one row for each node."""
    degrees = np.arange(len(_NODES))
    legendre = np.polynomial.legendre.legvander(_NODES, len(_NODES))
    # ∫ P_n = (P_{n+1} - P_{n-1})/(2n + 1), and x + 1 for n = 0; coefficients by the rule's own orthogonality.
    lower = np.column_stack([-np.ones(len(_NODES)), legendre[:, :-2]])
    integrals = (legendre[:, 1:] - lower) / (2 * degrees + 1)
    found: Floats = integrals @ (legendre[:, :-1] * _WEIGHTS[:, None] * (2 * degrees + 1) / 2).T
    return found


_RUNNING = _running()


def mass(posterior: Posterior, t: Floats, weights: Floats) -> Floats:
    """The probability at each node, 1 in all."""
    found: Floats = weights * np.exp(posterior.log_density(t))
    found /= found.sum()
    return found


def total(posterior: Posterior) -> float:
    """What the density, as `log_density` gives it, integrates to."""
    t, weights = nodes(posterior.edges(), rates=isinstance(posterior, Beta))
    return float(weights @ np.exp(posterior.log_density(t)))


def tails(posterior: Posterior, t: Floats, own: Floats) -> tuple[Floats, Floats]:
    """P(θ ≤ …) and P(θ > …) at each node; `own` is the mass there, of all nodes."""
    if isinstance(posterior, Normal) or posterior.a + posterior.b < INTEGRATED:
        return posterior.below(t), posterior.above(t)
    return integrated(own), integrated(own[::-1])[::-1]


def integrated(own: Floats) -> Floats:
    """What is below each node of the mass at the nodes, with all its digits but in the far tail."""
    panels = own.reshape(-1, len(_NODES))
    whole = panels.sum(axis=1)
    before = np.concatenate([[0.0], whole.cumsum()[:-1]])
    below = before[:, None] + panels @ (_RUNNING / _WEIGHTS).T
    found: Floats = np.clip(below.ravel(), 0.0, 1.0)
    return found


def joined(posteriors: Sequence[Posterior]) -> Floats:
    """The edges of all of them."""
    return np.concatenate([one.edges() for one in posteriors])
