"""Tasks: examples, prompts and rewards; no model."""
