"""Attention patterns: statistics of every head, and one head's pattern."""
