"""Builds the package with ``pyproject.toml``; a package index shows the README, so its links are made absolute."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
ADDRESS = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def with_absolute_links(text: str) -> str:
    """Let links and pictures of a page at the repository's top lead to its public address."""

    def absolute(found: re.Match[str]) -> str:
        picture, label, path = found.groups()
        return f"{picture}[{label}]({ADDRESS}/{'raw' if picture else 'blob'}/main/{path})"

    return LINK.sub(absolute, text)


if __name__ == "__main__":
    readme = with_absolute_links((HERE / "README.md").read_text(encoding="utf-8"))
    setup(long_description=readme, long_description_content_type="text/markdown")
