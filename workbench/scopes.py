"""Scopes: at which positions, and when, an edit acts. Always in absolute positions.

A position counts a row's own tokens from 0, padding left out, so a scope means the same with and
without a KV cache, alone and in a batch. What position p's activations decide is token p + 1:
the *first generated token comes from the last prompt position*, so each scope says whether it is in.

    all            every position.                           first generated token: yes
    prompt         every prompt position.                    first generated token: yes
    last_prompt    the last prompt position only.            first generated token: yes, and only it
    generated      positions of generated tokens.            first generated token: no
    span(a, b)     positions a <= p < b.                     only if it holds the last prompt position
    tokens({..})   positions whose own token is in the set.  only if the prompt ends in one
    after(token)   from the first reading of the token on (its own position included).
    bos            position 0 where it holds the beginning-of-sequence token.

`|` joins scopes and `-` takes positions out: `Scope.parse("prompt|generated-bos")`.
`tokens` and `after` are conditional: they may cover nothing, and then the receipt says so.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from workbench.errors import WorkbenchError, unknown

KINDS = ("all", "prompt", "last_prompt", "generated", "bos", "span", "tokens", "after")
CONDITIONAL = ("tokens", "after")
# a quoted token may itself hold brackets, commas and bars
_WORD = re.compile(r"""([|-]?)\s*(\w+(?:\((?:'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^()'"])*\))?)\s*""")
Token = int | str


@dataclass(frozen=True)
class Term:
    """One word of a scope with its arguments."""

    kind: str
    args: tuple[Token, ...] = ()

    def __str__(self) -> str:
        if self.kind == "tokens":
            return f"tokens({{{', '.join(map(repr, self.args))}}})"
        return f"{self.kind}({', '.join(map(repr, self.args))})" if self.args else self.kind


@dataclass(frozen=True)
class Scope:
    """The union of `include` minus the union of `exclude`."""

    include: tuple[Term, ...]
    exclude: tuple[Term, ...] = ()

    @classmethod
    def parse(cls, text: str | Scope) -> Scope:
        """Read `"prompt|generated-bos"`; a Scope passes through.

        Raises:
            UnknownName: no scope of that name.
            WorkbenchError: arguments that do not fit.
        """
        if isinstance(text, Scope):
            return text
        plus, minus = [], []
        for sign, word in _WORD.findall(text):
            (minus if sign == "-" else plus).append(_term(text, word))
        if not plus or _WORD.sub("", text).strip():
            raise _unreadable(text, text)
        return cls(tuple(plus), tuple(minus))

    @classmethod
    def all(cls) -> Scope:
        """Every position."""
        return cls((Term("all"),))

    @classmethod
    def prompt(cls) -> Scope:
        """Every prompt position, the last one (which decides the first generated token) included."""
        return cls((Term("prompt"),))

    @classmethod
    def last_prompt(cls) -> Scope:
        """The last prompt position: decides the first generated token."""
        return cls((Term("last_prompt"),))

    @classmethod
    def generated(cls) -> Scope:
        """Positions of generated tokens; the first generated token's own decision is not in."""
        return cls((Term("generated"),))

    @classmethod
    def span(cls, start: int, stop: int) -> Scope:
        """Positions `start <= p < stop`."""
        return cls((_checked("span", Term("span", (start, stop))),))

    @classmethod
    def tokens(cls, tokens: set[Token] | frozenset[Token]) -> Scope:
        """Positions whose token is in the set (ids, or texts that are one token). Conditional."""
        return cls((_checked("tokens", Term("tokens", tuple(sorted(tokens, key=str)))),))

    @classmethod
    def after(cls, token: Token) -> Scope:
        """From the first reading of the token on, its own position included. Conditional."""
        return cls((Term("after", (token,)),))

    @classmethod
    def bos(cls) -> Scope:
        """Position 0 where it holds the beginning-of-sequence token."""
        return cls((Term("bos"),))

    def __or__(self, other: Scope) -> Scope:
        if self.exclude or other.exclude:
            raise _nested(f"{self} | {other}")
        return Scope(self.include + other.include, self.exclude + other.exclude)

    def __sub__(self, other: Scope) -> Scope:
        if other.exclude:
            raise _nested(f"{self} - ({other})")
        return Scope(self.include, self.exclude + other.include)

    def __str__(self) -> str:
        return "|".join(map(str, self.include)) + "".join(f"-{t}" for t in self.exclude)

    @property
    def conditional(self) -> bool:
        """Whether covering nothing is legitimate."""
        return any(t.kind in CONDITIONAL for t in self.include + self.exclude)


def _term(text: str, word: str) -> Term:
    kind, paren, body = word.partition("(")
    if kind not in KINDS:
        raise unknown(f"scope {text!r}", "scope", kind, KINDS)
    if not paren:
        return _checked(text, Term(kind))
    try:
        value = ast.literal_eval(f"({body[:-1]},)")
    except (ValueError, SyntaxError):
        raise _unreadable(text, word) from None
    if kind == "tokens":
        flat = value[0] if len(value) == 1 and isinstance(value[0], set | frozenset) else value
        value = tuple(sorted(flat, key=str))
    return _checked(text, Term(kind, tuple(value)))


def _checked(text: str, term: Term) -> Term:
    fits = {
        "span": len(term.args) == 2
        and all(isinstance(a, int) for a in term.args)
        and 0 <= int(term.args[0]) < int(term.args[1]),
        "tokens": bool(term.args),
        "after": len(term.args) == 1,
    }
    if not fits.get(term.kind, not term.args):
        raise _unreadable(text, term)
    return term


def _nested(text: str) -> WorkbenchError:
    return WorkbenchError(
        f"scope {text!r}",
        "takes positions out inside a part",
        expected="a union first, then what is taken out of it",
        got=text,
        do="write it as one: a|b-c means (a|b) without c",
    )


def _unreadable(text: str, got: object) -> WorkbenchError:
    return WorkbenchError(
        f"scope {text!r}",
        "cannot be read",
        expected="all, prompt, last_prompt, generated, bos, span(a, b) with a < b, "
        "tokens({..}) or after(token), joined by | and -",
        got=str(got),
        do="see workbench.scopes",
    )
