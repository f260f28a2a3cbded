"""Engines: how a learner's steps are executed."""

from typing import Literal

Engine = Literal["auto", "torch", "fused", "compiled"]
