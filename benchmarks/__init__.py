"""The speed benchmark: this package beside what else could be used."""
