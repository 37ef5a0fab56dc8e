"""Controllers of step-by-step edits: one file each, asked at every generated token. See `base`."""
