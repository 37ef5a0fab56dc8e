"""SAELens, imported when a dictionary is first needed: it takes seconds, and is an optional extra."""

from __future__ import annotations

import warnings
from types import ModuleType

from workbench.errors import WorkbenchError


def sae_lens() -> ModuleType:
    """The module `sae_lens`.

    Raises:
        WorkbenchError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # it imports names that TransformerLens has moved
            warnings.simplefilter("ignore")
            import sae_lens
    except ImportError as error:
        raise WorkbenchError(
            "workbench.sae",
            "SAELens is not installed here",
            expected="sae-lens>=6.54,<7",
            got=str(error),
            do="pip install 'interp-workbench[sae]'",
        ) from None
    return sae_lens
