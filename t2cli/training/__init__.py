"""Reinforcement learning of z."""
