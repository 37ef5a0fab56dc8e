"""A comparison as text for terminals and as HTML for notebooks, saying the same."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_NOTE = (
    "Mean [95 % interval] over prompts; below it the paired difference to {base}. "
    "* : its interval leaves out 0, Holm-corrected p < 0.05, and it is no smaller than the standard "
    "deviation of {base} over seeds, where there are several."
)
# Colours come from JupyterLab's variables, or are inherited: readable in light and dark alike.
_STYLE = """<style>
.wb-table{border-collapse:collapse;font-size:13px;color:inherit;background:transparent}
.wb-table th,.wb-table td{padding:4px 12px;text-align:right;vertical-align:top;border:none;
border-bottom:1px solid var(--jp-border-color2,rgba(128,128,128,.4));white-space:nowrap;
color:inherit;background:transparent}
.wb-table th:first-child,.wb-table td:first-child{text-align:left;white-space:normal}
.wb-table .wb-ci,.wb-table .wb-diff,.wb-note{opacity:.75}
.wb-table .wb-differs{font-weight:700;opacity:1}
.wb-note{font-size:12px;max-width:60em}
</style>"""


def as_text(summary: Any, provenance: Mapping[str, Any]) -> str:
    """Aligned columns, a row per arm, of what `Table.summary` gives."""
    grid, base = _grid(summary)
    lines = [row for cells in grid for row in _lines(cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in lines
    ]
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join([*text, _NOTE.format(base=base), _origin(provenance)])


def as_html(summary: Any, provenance: Mapping[str, Any]) -> str:
    """The same as a table without scripts, every word of it escaped."""
    (head, *body), base = _grid(summary)
    header = "".join(f"<th scope='col'>{escape(c['text'])}</th>" for c in head)
    rows = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in body)
    note = f"{escape(_NOTE.format(base=base))}<br>{escape(_origin(provenance))}"
    return (
        f"{_STYLE}<table class='wb-table'><thead><tr>{header}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        f"<div class='wb-note'>{note}</div>"
    )


def _grid(summary: Any) -> tuple[list[list[dict[str, Any]]], str]:
    """Header and rows of cells; a cell has `text`; numbers `mean`, `ci`, `diff`, `differs`."""
    base = str(summary["against"].iloc[0])
    metrics = list(dict.fromkeys(summary["metric"]))
    units = dict(zip(summary["metric"], summary["unit"], strict=True))
    grid = [[{"text": "arm"}, *({"text": f"{m} ({units[m]})"} for m in metrics)]]
    for arm in dict.fromkeys(summary["arm"]):
        of_arm = summary[summary["arm"] == arm].set_index("metric")
        cells = [_cell(of_arm.loc[m]) if m in of_arm.index else {"text": ""} for m in metrics]
        grid.append([{"text": str(arm)}, *cells])
    return grid, base


def _lines(cells: list[dict[str, Any]]) -> list[list[str]]:
    """One row of the grid as lines of text: values, then differences where there are any."""
    differences = [cell.get("diff", "") for cell in cells]
    return [[cell["text"] for cell in cells], *([differences] if any(differences) else [])]


def _cell(row: Any) -> dict[str, Any]:
    mean, ci = f"{row['mean']:.3g}", interval(row["low"], row["high"], int(row["n"]))
    if row["arm"] == row["against"] or row["difference"] != row["difference"]:
        return {"text": f"{mean} {ci}", "mean": mean, "ci": ci, "diff": "", "differs": False}
    low, high = row["difference_low"], row["difference_high"]
    diff = f"{row['difference']:+.3g} {interval(low, high, int(row['n']), '+')}"
    star = "*" if row["differs"] else ""
    shown = {"text": f"{mean} {ci}", "mean": mean, "ci": ci, "diff": diff + star}
    return shown | {"differs": bool(row["differs"])}


def interval(low: float, high: float, n: int, sign: str = "") -> str:
    """`[low, high]`, or in words that there is none."""
    if low != low:
        return "(one prompt: no interval)" if n == 1 else "(no interval)"
    return f"[{low:{sign}.3g}, {high:{sign}.3g}]"


def _html_cell(cell: dict[str, Any]) -> str:
    if "mean" not in cell:
        return f"<td>{escape(cell['text'])}</td>"
    shown = "wb-diff wb-differs" if cell["differs"] else "wb-diff"
    diff = f"<br><span class='{shown}'>{escape(cell['diff'])}</span>" if cell["diff"] else ""
    return f"<td>{escape(cell['mean'])} <span class='wb-ci'>{escape(cell['ci'])}</span>{diff}</td>"


def _origin(known: Mapping[str, Any]) -> str:
    model = (known.get("model") or {}).get("name", "unknown model")
    said = [str(model)]
    n = known.get("n_prompts")
    said += [f"{n} prompt{'s' * (n != 1)}"] if n else []
    said += [f"seeds {', '.join(map(str, known['seeds']))}"] if known.get("seeds") else []
    said += [str(known["decoder"])] if known.get("decoder") else []
    said += [str(known["date"])] if known.get("date") else []
    return " | ".join([*said, *map(str, known.get("notes", ()))])
