"""Engines: how a learner's steps are executed."""

from typing import Literal

Engine = Literal["auto", "torch", "fused", "compiled"]

COMPILED = {"name": "compiled", "reason": "network, loss and optimizer have compiled code"}  # for the record
