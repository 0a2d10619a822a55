"""Backbones: the interface (backbone.py), a family a file, and how weights are brought in (init.py)."""
