"""Versioned experts on disk: the code. The experts that ship with t2 are data, in the top folder `registry/`.

Nothing here imports torch, numpy, transformers or huggingface_hub: listing experts must be instant.
"""
