"""Fixed, scheduled and replayed step sizes, to compare with."""
