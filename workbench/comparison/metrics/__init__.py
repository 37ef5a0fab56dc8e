"""Metrics of a comparison: one file, one number about one continuation. See `base.Metric`."""
