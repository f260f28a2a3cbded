"""Gradients of a traced graph."""
