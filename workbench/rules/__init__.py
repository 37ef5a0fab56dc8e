"""Rules of `adaptive` edits: one file each, a function of the activation. See `base.Rule`."""
