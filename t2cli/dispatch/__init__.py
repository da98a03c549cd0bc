"""Pass 1: look at the question, choose experts."""
