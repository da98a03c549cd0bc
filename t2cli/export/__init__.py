"""Experts in other forms: a LoRA adapter, a plain checkpoint, a bundle; and from the paper's released files."""
