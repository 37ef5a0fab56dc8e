"""The model layer: the only place that registers hooks or knows an architecture."""
