"""How probes are fitted on activations and judged: cross-validation, controls, baselines, files."""
