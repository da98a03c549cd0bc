"""Base models: found, loaded, decomposed, adapted, and made to answer."""
