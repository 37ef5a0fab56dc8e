"""Prompts: pairs, chat templates, dataset readers."""
