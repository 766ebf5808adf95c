"""What is computed from likelihoods and answers; numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vllm_palign.directions.numbers import Mask, Reals

MIN_COMMON = 3
"""Fewest items two subjects must share to be told apart."""

_TIE = 1e-9


def correlation(a: Reals, b: Reals, rows: Mask) -> float:
    """Pearson correlation over ``rows`` bool [N]; 0 where ``a`` is constant, NaN where ``b`` is."""
    rows = rows & np.isfinite(a) & np.isfinite(b)
    x, y = a[rows], b[rows]
    if len(x) < MIN_COMMON or np.ptp(y) == 0:
        return float("nan")
    if np.ptp(x) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def alignment(change: Reals, deviation: Reals, rows: npt.NDArray[np.bool_]) -> Reals:
    """Statement alignment per subject: float64 [S].

    Over a subject's ``rows`` bool [S, N]: correlation of ``change``, log-likelihood of the statement
    under the condition minus plain, and ``deviation``, answer minus usual answer; both [S, N]. A
    constant answer or agreeing with everything cannot win it.
    """
    lines = zip(change, deviation, rows, strict=True)
    return np.array([correlation(*line) for line in lines])


def centred(change: Reals) -> Reals:
    """``change`` [S, N] minus its mean over the other subjects: what all subjects share is gone.

    A prompt moves every statement's likelihood in the same way for everybody; that part says
    nothing about the person and only adds noise to the correlation.
    """
    known = np.isfinite(change)
    others = known.sum(0) - known
    filled = np.where(known, change, 0.0)
    means = (filled.sum(0) - filled) / np.maximum(others, 1)
    return np.where(others >= 1, change - means, np.nan)


def crossed(change: Reals, deviation: Reals, rows: npt.NDArray[np.bool_]) -> tuple[Reals, Reals]:
    """Correlation of every subject's change with their own and with every other's deviation, over the items that the
    two share: own [S, S], of subject i over what they share with j, and crossed [S, S], of the change of i and the
    deviation of j."""
    rows = rows & np.isfinite(change) & np.isfinite(deviation)
    # Every sum over the items that i and j share is one matrix product, so that hundreds of subjects
    # take no longer than the sums themselves.
    x, y = _own_centred(change, rows), _own_centred(deviation, rows)
    shared = rows.astype(np.float64)
    n = shared @ shared.T
    own_x, own_y = x @ shared.T, y @ shared.T
    own_xx, own_yy = x**2 @ shared.T, y**2 @ shared.T
    right = _correlations(n, own_x, own_y, own_xx, own_yy, (x * y) @ shared.T)
    return right, _correlations(n, own_x, own_y.T, own_xx, own_yy.T, x @ y.T)


def identification(change: Reals, deviation: Reals, rows: npt.NDArray[np.bool_]) -> Reals:
    """For every pair of subjects whether the right pairing beats the swapped one: float64 [S, S].

    1 where corr(change i, answers i) + corr(change j, answers j) is greater than with i and j
    exchanged, 0.5 on a tie, else 0; NaN on the diagonal and where too few items are common. Chance
    is 0.5, and whatever both conditions share cancels.
    """
    right, other = crossed(change, deviation, rows)
    gain = (right + right.T) - (other + other.T)
    wins = np.where(np.abs(gain) < _TIE, 0.5, (np.sign(gain) + 1) / 2)
    wins[np.isnan(gain) | np.eye(len(wins), dtype=bool)] = np.nan
    return wins


def ranks(change: Reals, deviation: Reals, rows: npt.NDArray[np.bool_]) -> Reals:
    """Share of subjects, each among them, whose change follows a subject's answers at least as well as the subject's
    own: float64 [S], NaN where nothing can be told. Whoever is no more than anybody has any rank with the same chance.
    """
    right, other = crossed(change, deviation, rows)
    known = np.isfinite(right) & np.isfinite(other.T) & ~np.eye(len(right), dtype=bool)
    as_well = (known & (right - _TIE <= other.T)).sum(1)
    return np.where(known.any(1), (1 + as_well) / (1 + known.sum(1)), np.nan)


def _own_centred(values: Reals, rows: npt.NDArray[np.bool_]) -> Reals:
    """[S, N] minus each subject's own mean; 0 outside ``rows``. Keeps the sums free of rounding."""
    known = np.where(rows, values, 0.0)
    means = known.sum(1, keepdims=True) / np.maximum(rows.sum(1, keepdims=True), 1)
    return np.where(rows, known - means, 0.0)


def _correlations(n: Reals, sx: Reals, sy: Reals, sxx: Reals, syy: Reals, sxy: Reals) -> Reals:
    """Pearson correlations from sums over n items; 0 where x is constant, NaN where y is."""
    count = np.maximum(n, 1)
    var_x, var_y = sxx - sx**2 / count, syy - sy**2 / count
    flat_x, flat_y = var_x < _TIE, var_y < _TIE
    scale = np.sqrt(np.where(flat_x, 1.0, var_x) * np.where(flat_y, 1.0, var_y))
    correlations = np.where(flat_x, 0.0, (sxy - sx * sy / count) / scale)
    return np.where(flat_y | (n < MIN_COMMON), np.nan, correlations)


def trait_errors(
    predicted: Reals, answers: Reals, rows: npt.NDArray[np.bool_], traits: Mapping[str, Mask]
) -> dict[str, Reals]:
    """Mean absolute error per trait, in scale points: trait -> float64 [S], NaN without items."""
    off = np.abs(predicted - answers)
    return {trait: _mean(off, rows & mask) for trait, mask in traits.items()}


def summed(errors: Mapping[str, Reals]) -> Reals:
    """The five traits' errors added (the paper's score): float64 [S], NaN where one is missing."""
    return np.asarray(np.sum(list(errors.values()), axis=0))


def calibrated(change: Reals, deviation: Reals, usual: Reals, rows: npt.NDArray[np.bool_]) -> Reals:
    """What the statements' likelihoods say that somebody answers, on the answers' own scale: float64 [S, N], 1 to 5.

    The usual answer plus slope x ``change`` [S, N] around each subject's own mean. A subject's slope is that of all
    *other* subjects' ``deviation`` from the usual on their change, a regression through the origin: whoever is read
    has no part in how. Without any change around the mean it is 0, and so it is for a single subject.
    """
    rows = rows & np.isfinite(change) & np.isfinite(deviation)
    own = _own_centred(change, rows)
    shared, square = (own * np.where(rows, deviation, 0.0)).sum(1), (own**2).sum(1)
    others, squares = shared.sum() - shared, square.sum() - square
    slopes = np.where(squares > _TIE, others / np.maximum(squares, _TIE), 0.0)
    return np.clip(usual + slopes[:, None] * own, 1, 5)


def keyed_difference(
    values: Reals, rows: npt.NDArray[np.bool_], mask: Mask, signs: npt.NDArray[np.int64]
) -> Reals:
    """Mean of ``values`` [S, N] on items keyed + minus mean on items keyed -: float64 [S].

    A keying without items in ``rows`` counts as 0.
    """
    plus = _mean(values, rows & mask & (signs > 0))
    minus = _mean(values, rows & mask & (signs < 0))
    both = np.nan_to_num(plus) - np.nan_to_num(minus)
    return np.where(np.isfinite(plus) | np.isfinite(minus), both, np.nan)


def keyed_mean(
    answers: Reals, rows: npt.NDArray[np.bool_], mask: Mask, signs: npt.NDArray[np.int64]
) -> Reals:
    """Mean of [S, N] answers with minus-keyed ones turned around: a trait score 1..5, [S]."""
    return _mean(np.where(signs > 0, answers, 6 - answers), rows & mask)


def _mean(values: Reals, rows: npt.NDArray[np.bool_]) -> Reals:
    rows = rows & np.isfinite(values)
    counts = rows.sum(1)
    means = np.where(rows, values, 0.0).sum(1) / np.maximum(counts, 1)
    return np.where(counts > 0, means, np.nan)
