"""Commands that measure speed, this package beside what else could be used, in one run."""
