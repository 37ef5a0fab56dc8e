"""All heads by their scores; open one: its pattern, its numbers, the model without it."""
