"""The logit lens as a grid: layers by tokens."""
