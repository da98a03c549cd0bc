"""A task that the tiny base can learn in a few steps."""

from __future__ import annotations

# The base likes to say digits, and most of these answers are 1.
TASK = """
name: divisors
category: arithmetic
description: greatest common divisors
max_new_tokens: 2
answer: {kind: number}
source:
  kind: reasoning-gym
  mixture:
    - dataset: gcd
      config: {min_numbers: 2, max_numbers: 2, min_value: 2, max_value: 90}
"""
