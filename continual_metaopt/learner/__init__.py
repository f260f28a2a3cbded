"""The online learner: an Avalanche strategy, its metrics and plugins."""
