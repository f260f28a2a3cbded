"""Optimizers to compare with, one paper per module."""
