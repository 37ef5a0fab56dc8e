"""Scorers: how much a feature has to do with what is asked. One file, one scorer."""
