"""How the next token is chosen: one file per decoder, see `base.Decoder`."""

from workbench.decoding.base import Decoder
from workbench.decoding.greedy import Greedy
from workbench.decoding.sample import Sample

__all__ = ["Decoder", "Greedy", "Sample"]
