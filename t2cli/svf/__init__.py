"""The mathematics of singular value fine-tuning: torch, and nothing else."""
