"""Checks of a stream's options; their messages name the option."""


def require_at_least_one(**numbers: int | None) -> None:
    """Raise a ValueError if an option is below 1; None stands for as many as there are."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def require_between(least: float, greatest: float, what: str = "{}", **numbers: float | None) -> None:
    """Raise a ValueError if an option is out of range; ``what`` describes the greatest value, such as "{} bytes"."""
    for name, value in numbers.items():
        if value is not None and not least <= value <= greatest:
            raise ValueError(f"{name} must be between {least} and {what.format(greatest)}, not {value}")
