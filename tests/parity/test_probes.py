"""Our probes against scikit-learn's, on the same rows.

The reference of the logistic probe is scikit-learn at its true optimum (Newton, tol 1e-10, float64):
its default L-BFGS stops where coefficients are still off by percents.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as TheirRidge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from workbench import linalg
from workbench.probes import Lda, Logistic, MassMean, Mlp, Ridge
from workbench.probes.base import Data


def classes(seed: int, n: int = 300, d: int = 24, skew: float = 0.0) -> Data:
    """Two overlapping classes; `skew` makes coordinates of very unequal size, correlated, far from 0."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=draw)
    targets = (torch.rand(n, generator=draw) < 0.4).double()
    rows[:, 2] += 1.2 * targets.float()
    rows[:, 5] -= 0.8 * targets.float()
    if skew:
        turn = torch.linalg.qr(torch.randn(d, d, generator=draw))[0]
        rows = rows * torch.logspace(-skew, skew, d) @ turn + 5 * torch.randn(d, generator=draw)
    return Data(rows, targets)


def logistic_of_sklearn(data: Data, c: float, standardised: bool) -> tuple[np.ndarray, float]:
    scaler = StandardScaler(with_std=standardised)
    z = scaler.fit_transform(data.rows.double().numpy())
    fit = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-10, max_iter=500)
    fit.fit(z, data.targets.numpy())
    weight = fit.coef_[0] / (scaler.scale_ if standardised else 1.0)
    return weight, fit.intercept_[0] - weight @ scaler.mean_


def close(found: dict[str, torch.Tensor], weight: np.ndarray, bias: float) -> None:
    """Coefficients to 1e-3 of the largest."""
    limit = 1e-3 * float(np.abs(weight).max())
    assert np.abs(found["weight"].double().numpy() - weight).max() < limit
    assert abs(float(found["bias"]) - bias) < 1e-3 * max(1.0, abs(bias))


@pytest.mark.parametrize("standardised", [True, False])
@pytest.mark.parametrize("c", [0.01, 1, 100.0])
@pytest.mark.parametrize("skew", [0.0, 1.5])
def test_logistic_coefficients(standardised: bool, c: float | int, skew: float) -> None:
    data = classes(1, skew=skew)
    found = Logistic(inverse_penalty=c, standardised=standardised).fit(data)
    close(found, *logistic_of_sklearn(data, c, standardised))


@pytest.mark.filterwarnings("ignore:.*features and only")
@pytest.mark.parametrize("c", [1.0, 1000.0])
@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_logistic_coefficients_with_more_features_than_rows(c: float, skew: float) -> None:
    """Labels can be fitted, so the loss is all but flat: only the penalty says where to stop."""
    data = classes(2, n=40, d=90, skew=skew)
    close(Logistic(inverse_penalty=c).fit(data), *logistic_of_sklearn(data, c, True))


@pytest.mark.filterwarnings("error:.*did not converge")
def test_large_raw_rows_converge_like_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient is as large as the rows, and so is its rounding."""
    steps, direction = [], linalg._direction
    monkeypatch.setattr(linalg, "_direction", lambda *a: steps.append(1) or direction(*a))
    data = classes(3, n=400, skew=1.5)
    data = Data(data.rows * 300, data.targets)
    close(Logistic(standardised=False).fit(data), *logistic_of_sklearn(data, 1.0, False))
    assert len(steps) < 100


def test_many_logistic_fits_are_the_single_ones() -> None:
    sites = {f"L{i}.resid_post": classes(i, skew=i % 3 / 2) for i in range(5)}
    sites["L9.resid_post"] = classes(9, n=200)
    found = Logistic().fit_many(sites)
    assert list(found) == list(sites)
    for site, data in sites.items():
        close(found[site], *logistic_of_sklearn(data, 1.0, True))


@pytest.mark.parametrize("shrinkage", ["auto", 0.3, None])
def test_lda_coefficients(shrinkage: str | float | None) -> None:
    data = classes(3, skew=0.7)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    theirs.fit(data.rows.double().numpy(), data.targets.numpy())
    close(Lda(shrinkage).fit(data), theirs.coef_[0], theirs.intercept_[0])


def test_the_whitened_mass_mean_probe_is_lda_at_equal_priors() -> None:
    data = classes(4, skew=0.7)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5])
    n = torch.stack([(data.targets == 0).sum(), (data.targets == 1).sum()])
    # their covariance weighs classes by priors, ours by rows: equal where classes are
    keep = torch.cat([torch.where(data.targets == k)[0][: int(n.min())] for k in (0, 1)])
    data = data.at(keep)
    theirs.fit(data.rows.double().numpy(), data.targets.numpy())
    close(MassMean(iid=True).fit(data), theirs.coef_[0], theirs.intercept_[0])


@pytest.mark.parametrize("standardised", [True, False])
@pytest.mark.parametrize(("n", "d"), [(300, 24), (30, 60)])
@pytest.mark.filterwarnings("ignore:.*features and only")
def test_ridge_coefficients(standardised: bool, n: int, d: int) -> None:
    data = classes(5, n, d, skew=0.5)
    targets = 3 + data.rows[:, 1].double() * 2 + data.rows[:, 4].double().square()
    data = Data(data.rows, targets)
    rows = data.rows.double().numpy()
    theirs = make_pipeline(StandardScaler(with_std=standardised), TheirRidge(alpha=4.0))
    theirs.fit(rows, targets.numpy())
    weight = theirs[1].coef_ / (theirs[0].scale_ if standardised else 1.0)
    found = Ridge(penalty=4, standardised=standardised).fit(data)
    close(found, weight, theirs[1].intercept_ - weight @ theirs[0].mean_)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_mlp_accuracy() -> None:
    """On an exclusive-or, which no line can tell; scikit-learn at its own defaults but for the size."""
    draw = torch.Generator().manual_seed(6)
    rows = torch.randn(1600, 8, generator=draw) * torch.tensor([1, 9, 1, 1, 30, 1, 1, 1]) + 4
    targets = ((rows[:, 0] > 4) ^ (rows[:, 1] > 4)).double()
    fit, held = Data(rows[:800], targets[:800]), Data(rows[800:], targets[800:])
    found = Mlp().fit(fit)
    theirs = make_pipeline(
        StandardScaler(),
        MLPClassifier((32,), solver="lbfgs", alpha=1.0, max_iter=300, random_state=3),
    ).fit(fit.rows.numpy(), fit.targets.numpy())
    ours = ((Mlp.score(found, {}, held.rows) > 0) == (held.targets > 0)).double().mean()
    assert float(ours) > theirs.score(held.rows.numpy(), held.targets.numpy()) - 0.005
    assert float(ours) > 0.95


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_mlp_scores_are_those_of_the_network_it_trained() -> None:
    data = classes(7, skew=0.5)
    z = StandardScaler().fit_transform(data.rows.double().numpy()).astype(np.float32)
    theirs = MLPClassifier((32,), solver="lbfgs", alpha=1.0, max_iter=60, random_state=5)
    theirs.fit(z, data.targets.numpy().astype(int))
    score = Mlp.score(Mlp(steps=60, seed=5).fit(data), {}, data.rows)
    assert np.abs(score.sigmoid().numpy() - theirs.predict_proba(z)[:, 1]).max() < 5e-3
