"""Measurements against the peer that a user would pick instead, in one run, as ratios."""
