"""Figures: one file, one kind. `draw(frame, spec, caption)` gives a plotly figure of a table's rows."""
