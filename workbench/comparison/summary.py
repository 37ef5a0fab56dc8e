"""From tidy rows to a row per arm and metric, with intervals and paired differences."""

from __future__ import annotations

from typing import Any

from workbench.comparison.stats import full_marks, holm, mean_interval, paired_difference


def summarise(frame: Any, base: str) -> Any:
    """A DataFrame of means, intervals, and differences to the arm `base`; `frame` is tidy."""
    import pandas as pd

    rows = []
    for metric, of_metric in frame.groupby("metric", sort=False):
        # a prompt under several seeds is one observation: its mean
        wide = of_metric.pivot_table(
            index="prompt", columns="arm", values="value", aggfunc="mean", dropna=False
        )
        unit = of_metric["unit"].iloc[0]
        of_base = of_metric[of_metric["arm"] == base]
        spread = {"seed_sd": float(of_base.groupby("seed")["value"].mean().std())}
        arms = dict.fromkeys(of_metric["arm"])
        rows += [_row(wide, arm, base, metric, unit) | spread for arm in arms]
    out = pd.DataFrame(rows)
    out["p_holm"] = holm(out["p"].tolist())
    excludes_0 = (out["difference_low"] > 0) | (out["difference_high"] < 0)
    # NaN, where there is one seed, is below nothing
    within_seeds = out["difference"].abs() < out["seed_sd"]
    out["differs"] = excludes_0 & (out["p_holm"] < 0.05) & ~within_seeds
    return out


def _row(wide: Any, arm: Any, base: str, metric: Any, unit: str) -> dict[str, Any]:
    nan = float("nan")
    top = full_marks(unit)
    share = {"proportion": top is not None, "top": top or 1.0}
    own = mean_interval(wide[arm].to_numpy(), **share)
    row = {"metric": metric, "arm": arm, "unit": unit, "n": own.n}
    row |= {"mean": own.mean, "low": own.low, "high": own.high, "against": base}
    if arm == base:
        return row | {"difference": nan, "difference_low": nan, "difference_high": nan, "p": nan}
    gap = paired_difference(wide[arm].to_numpy(), wide[base].to_numpy(), **share)
    return row | {
        "difference": gap.mean,
        "difference_low": gap.low,
        "difference_high": gap.high,
        "p": nan if gap.p is None else gap.p,
    }
