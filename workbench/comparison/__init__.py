"""Comparisons that tell the truth: arms side by side, with intervals, controls and provenance."""
