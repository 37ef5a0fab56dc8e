"""Every error a user can cause, in one form: where, what is wrong, expected, got, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkbenchError(ValueError):
    """A mistake in what was asked, said as `<where>: <wrong>; expected <x>; got <y>; <what to do>`."""

    def __init__(self, where: str, wrong: str, *, expected: object, got: object, do: str):
        self.where, self.wrong, self.expected, self.got, self.do = where, wrong, expected, got, do
        super().__init__(f"{where}: {wrong}; expected {expected}; got {got}; {do}")


class UnknownName(WorkbenchError):
    """A name that does not exist; the message lists the nearest ones that do."""


class SiteUnavailable(WorkbenchError):
    """This model or backend has no such site; the message says which backend has."""


class EditError(WorkbenchError):
    """An intervention that does not fit the model, or a strength that is not a finite number."""


class EditDidNothing(EditError):
    """An edit whose site was never reached, or that changed nothing at non-zero strength."""


class PromptError(WorkbenchError):
    """An empty prompt, one longer than the context, or a token outside the vocabulary."""


class FileRefused(WorkbenchError):
    """A file that is corrupt, half-written, of the wrong kind, or could run code when loaded."""


class DeviceUnavailable(WorkbenchError):
    """A device that this machine does not have."""


class ProofFailed(WorkbenchError):
    """A model whose sites do not hold what their names promise; found once, at load."""


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """The `n` known names closest to `name`, joined for an error message."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.0)
    return ", ".join(close or known[:n])


def unknown(where: str, kind: str, name: object, known: Iterable[str]) -> UnknownName:
    """The error for a name that is not among `known`."""
    known = list(known)
    return UnknownName(
        where,
        f"unknown {kind}",
        expected=f"one of {len(known)} names, nearest: {nearest(str(name), known)}",
        got=repr(name),
        do="check the spelling",
    )
