"""Axis letters used in every shape annotation of this project.

    batch   rows of a batch          pos     token positions (padding included where batched)
    row     recorded examples        layer   blocks, from 0
    d       residual width           head    attention heads (key-value heads for k and v)
    q, k    query and key positions  neuron  MLP hidden width      feature of a dictionary
    expert, vocab, d_head: as named

Annotations are checked at run time during the test run (jaxtyping with beartype) and cost nothing
outside it.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Ids = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"]
Logits = Float[Tensor, "batch pos vocab"]
Rows = Float[Tensor, "row d"]
Vector = Float[Tensor, " d"]
Codes = Float[Tensor, "row feature"]

__all__ = ["Bool", "Codes", "Float", "Ids", "Int", "Logits", "Mask", "Rows", "Tensor", "Vector"]
