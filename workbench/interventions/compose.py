"""Several edits at once: in which order they act, and what happens where they meet.

    model.generate(prompts, compose([ablation, addition]))            # ablate, then add
    model.generate(prompts, compose([tone, truth], conflict="error"))  # refuse to mix

Two edits meet where they act at one site (selectors considered) and their scopes may cover one
position. Edits need not commute: what an ablation removes after an addition, it leaves alone before
it. So the order of the list is the order of application, always; a policy says what else is done:

    order      nothing: every edit acts on what the one before it left.
    sum        additions that meet become one addition of their sum; other edits that meet are refused.
    priority   an edit loses the sites where it meets an earlier one, and is dropped where none remain.
    error      edits that meet are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor

from workbench import sites
from workbench.errors import EditError, unknown
from workbench.scopes import Scope, Term
from workbench.sites import Index, Site
from workbench.tensors import SUM_UNIT, Intervention

Conflict = Literal["order", "sum", "error", "priority"]
_MANY_LAYERS = 256
"""How far `L*` reaches where no edit says which model it is for."""


def compose(edits: Iterable[object], conflict: str = "order") -> list[Intervention]:
    """The edits as a list for `edits=`, after the policy for those that meet.

    Raises:
        UnknownName: no such policy.
        EditError: something in the list is no edit, or edits meet that the policy refuses.
    """
    if conflict not in get_args(Conflict):
        raise unknown("compose(conflict)", "policy", conflict, get_args(Conflict))
    many: list[Intervention] = []
    for one in edits:
        if not isinstance(one, Intervention):
            raise EditError(
                "compose",
                "holds something that is not an Intervention",
                expected="a list of Intervention",
                got=type(one).__name__,
                do="fit a method, or wb.load_edit(path)",
            )
        many.append(one)
    if conflict == "error":
        _refuse(many)
    if conflict == "priority":
        return _by_priority(many)
    return _summed(many) if conflict == "sum" else many


def meetings(a: Intervention, b: Intervention) -> list[tuple[str, str]]:
    """Site texts of `a` and of `b` at which both may act on one position."""
    if not _may_share_positions(a.scope, b.scope):
        return []
    n = max((e.model.n_layers for e in (a, b) if e.model), default=_MANY_LAYERS)
    return [(x, y) for x in a.sites for y in b.sites if _touch(x, y, n)]


def _refuse(edits: list[Intervention]) -> None:
    for i, later in enumerate(edits):
        for earlier in edits[:i]:
            for mine, theirs in meetings(later, earlier):
                raise _met(later, earlier, mine, theirs, "compose refuses it (conflict='error')")


def _by_priority(edits: list[Intervention]) -> list[Intervention]:
    kept: list[Intervention] = []
    for edit in edits:
        lost = {mine for earlier in kept for mine, _ in meetings(edit, earlier)}
        remaining = [site for site in edit.sites if site not in lost]
        if remaining:
            kept.append(edit.only(*remaining) if lost else edit)
    return kept


def _summed(edits: list[Intervention]) -> list[Intervention]:
    kept: list[Intervention] = []
    for edit in edits:
        partners = [i for i, earlier in enumerate(kept) if meetings(edit, earlier)]
        for i in partners:
            _check_summable(edit, kept[i])
        for i in reversed(partners[1:]):
            kept[partners[0]] = _sum(kept[partners[0]], kept.pop(i))
        if partners:
            kept[partners[0]] = _sum(kept[partners[0]], edit)
        else:
            kept.append(edit)
    return kept


def _check_summable(edit: Intervention, earlier: Intervention) -> None:
    faults = {
        "only additions have a sum": not (edit.is_addition and earlier.is_addition),
        "a strength per row has no sum": any(
            isinstance(e.strength, Tensor) for e in (edit, earlier)
        ),
        "their scopes differ": edit.scope != earlier.scope,
        "their models differ": None not in (edit.model, earlier.model)
        and edit.model != earlier.model,
    }
    for mine, theirs in meetings(edit, earlier):
        wrong = [fault for fault, found in faults.items() if found]
        wrong += ["one's site is a part of the other's"] if mine != theirs else []
        if wrong:
            raise _met(edit, earlier, mine, theirs, wrong[0])


def _sum(a: Intervention, b: Intervention) -> Intervention:
    """One addition at the sites of both; its strength is 1, or 0 where both are 0."""
    shifts: dict[str, Tensor] = {}
    for edit in (a, b):
        for site, tensors in edit.tensors.items():
            part = float(edit.strength) * tensors["shift"].double()
            shifts[site] = shifts[site] + part if site in shifts else part
    return replace(
        a,
        method="custom",
        tensors={site: {"shift": shift.float()} for site, shift in shifts.items()},
        strength=0.0 if a.is_zero and b.is_zero else 1.0,
        unit=SUM_UNIT,
        params={"parts": [e.label for e in (a, b)]},
        model=a.model or b.model,
        name=f"{a.label} + {b.label}",
        conditional=a.conditional or b.conditional,
    )


def _touch(x: str, y: str, n_layers: int) -> bool:
    return any(
        one.base == two.base and _selectors_touch(one, two)
        for one in sites.parse(x, n_layers)
        for two in sites.parse(y, n_layers)
    )


def _selectors_touch(one: Site, two: Site) -> bool:
    theirs = dict(two.selectors)
    for key, index in one.selectors:
        # a negative position counts from a prompt's end, so it may be any position
        mine, yours = set(_each(index)), set(_each(theirs.get(key, index)))
        if not mine & yours and min(mine | yours) >= 0:
            return False
    return True


def _each(index: Index) -> Iterator[int]:
    yield from [index] if isinstance(index, int) else index


def _may_share_positions(a: Scope, b: Scope) -> bool:
    """False only where no prompt could give both a position; unclear means they may."""
    return any(
        not _apart(x, y) and x not in b.exclude and y not in a.exclude
        for x in a.include
        for y in b.include
    )


def _apart(x: Term, y: Term) -> bool:
    for one, two in ((x, y), (y, x)):
        if one.kind == "generated" and two.kind in ("prompt", "last_prompt", "bos"):
            return True
        if one.kind == "bos" and two.kind == "span" and int(two.args[0]) > 0:
            return True
    if x.kind == y.kind == "span":
        return int(x.args[1]) <= int(y.args[0]) or int(y.args[1]) <= int(x.args[0])
    return False


def _met(
    edit: Intervention, earlier: Intervention, mine: str, theirs: str, wrong: str
) -> EditError:
    where = mine if mine == theirs else f"{mine} and {theirs}"
    return EditError(
        f"compose: {earlier.label!r} and {edit.label!r} at {where}",
        f"two edits meet and {wrong}",
        expected="edits apart in site or scope, or a policy that says what to do",
        got=f"scopes {earlier.scope} and {edit.scope}",
        do="give conflict='order' or 'priority', or move one with edit.only and edit.within",
    )
