"""A notebook as one self-contained page: run (`execute`), drawn (`outputs`, `prose`), `build`."""

from workbench.reporting.build import report

__all__ = ["report"]
