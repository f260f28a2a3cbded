"""How messages tell to install what only some users need."""


def how_to_install(extra: str) -> str:
    """Say how an extra of this package is installed; until there is a release, from the clone.

    Example:
        >>> how_to_install("ray")
        "in the clone, pip install -e '.[ray]'"
    """
    return f"in the clone, pip install -e '.[{extra}]'"
