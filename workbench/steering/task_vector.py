"""Replace the state at the separator by that of prompts with demonstrations (task vectors).

    v = mean(h+)         h+ the state at the last token of prompts with demonstrations
    h' = (1 - s) h + s v

Shapes: rows `[row, d]` per class and site; v `[d]`.
Units: strength s is the fraction of the way to the task's state: 1 replaces it.
Source: Hendel, Geva and Globerson (2023), In-Context Learning Creates Task Vectors,
    https://arxiv.org/abs/2310.15916. Injection at several separators (TaskV-M): Dong, Jiang, Zhu and
    Ning (2025), Understanding Task Vectors in In-Context Learning, https://arxiv.org/abs/2506.09048.
Differs from the paper: the positive class is prompts with demonstrations, a query and the separator
    last; the negative class is prompts without demonstrations, which the paper does not need. Here
    it is only checked: two classes with one mean teach no task. The paper replaces at one layer,
    chosen on a development set; here that is `steering.sweep`, and the default is every layer, of
    which the last alone then decides the next token. Where the separator occurs more than once and
    `separator` is set, all of its positions get the state, as in TaskV-M; our reading: the same state
    at each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workbench.errors import WorkbenchError
from workbench.registry import Citation, register
from workbench.scopes import Scope
from workbench.steering.base import Need, SteeringMethod, sites_of
from workbench.tensors import Contrast, Intervention

Encode = Callable[[str], list[int]]


@register(
    "steering",
    Citation(
        "Hendel, Geva, Globerson",
        "In-Context Learning Creates Task Vectors",
        2023,
        "https://arxiv.org/abs/2310.15916",
    ),
)
@dataclass(frozen=True)
class TaskVector(SteeringMethod):
    """Replace the state at the separator by the mean state of prompts with demonstrations.

    Attributes:
        separator: a text that is one token, at every occurrence of which in the prompt the state is
            replaced; None replaces it at the prompt's last position.
    """

    separator: str | None = None

    @property
    def needs(self) -> tuple[Need, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The tokenizer, where a separator is given as text."""
        return () if self.separator is None else ("encode",)

    def fit(self, contrast: Contrast, *, encode: Encode | None = None) -> Intervention:
        """The replacement at every recorded site.

        Raises:
            WorkbenchError: rows that cannot be fitted, or a separator that is not one token.
        """
        tensors = {
            site: {"value": positive.double().mean(0).float()}
            for site, positive, _ in sites_of(contrast, "TaskVector")
        }
        return Intervention(
            "task_vector",
            "set",
            tensors,
            unit="fraction of the way to the task's state",
            scope=self._scope(encode),
            params={"separator": self.separator, "max_strength": 1.0},
            model=contrast.model,
        )

    def _scope(self, encode: Encode | None) -> Scope:
        if self.separator is None:
            return Scope.last_prompt()
        ids = encode(self.separator) if encode else []
        if len(ids) != 1:
            raise WorkbenchError(
                "TaskVector(separator)",
                "is not one token" if encode else "needs a tokenizer",
                expected="a text that the tokenizer reads as one token",
                got=f"{self.separator!r}, tokens {ids}",
                do="fit through steering.fit with a separator such as '='",
            )
        return Scope.tokens({ids[0]}) - Scope.generated()
