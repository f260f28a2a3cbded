"""Engines: how a learner's steps are executed."""
