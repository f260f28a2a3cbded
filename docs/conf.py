"""How Sphinx makes the documentation site of these pages: ``sphinx-build -W -b html docs build/docs``."""

import functools
import inspect
import os
import pkgutil
import re
import shutil
import sys
import tomllib
from pathlib import Path

from docutils.nodes import Element
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
sys.path.insert(0, str(REPOSITORY))  # the sources beside these pages are described, not an installed version
for name, folder in (("PATH", Path(sys.executable).parent), ("PYTHONPATH", REPOSITORY)):  # for notebooks' commands
    os.environ[name] = os.pathsep.join([str(folder), *filter(None, [os.environ.get(name)])])

from continual_metaopt.streams import STREAMS  # noqa: E402

project = "continual-metaopt"
author = "The continual-metaopt developers"
project_copyright = author
release = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["sphinx.ext.autosummary", "sphinx.ext.viewcode"]  # the reference: a page for each module, and its source
exclude_patterns = ["records"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
nb_execution_mode = "force"  # git holds no outputs
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # other packages' warnings

autodoc_typehints_format = "short"
autosummary_context = {"inner": ["commands", "html", "paper", "scripts"]}  # rooms that have no page
templates_path = ["templates"]
suppress_warnings = ["ref.python"]  # a plain name in a docstring that several modules have
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [f"Options of {name}" for name in STREAMS.own]  # in the docstring of make_stream
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"{project} {release}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["site.css"]

# an option of a stream, with its default
OPTION = re.compile(r"^    (\w+ = (?:'[^']*'|[^:\n]*)): (.*(?:\n {8}.*)*)", re.MULTILINE)
INDENTED_BLOCK = re.compile(r"(?<!:):(?=\n\s*\n    +(?=\S))")  # in a docstring, a formula or a command
LITERAL = re.compile(r"(``.*?``)", re.DOTALL)
MARKUP = re.compile(r"\||\*(?=[\w.]+\])")  # signs of Sphinx that docstrings use otherwise, as in |h| and [n, *shape]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def name_files_that_are_no_pages(text: str, folder: Path) -> str:
    """Put the paths of sources, records and examples in place of links to them, since the site does not hold them.

    Links whose text is the name of a page get its title instead.

    Args:
        text: Markdown with links as they are in the repository.
        folder: that they are relative to.
    """

    def renamed(match: re.Match[str]) -> str:
        label, path, section = match.groups(default="")
        target = (folder / path).resolve()
        if target == REPOSITORY / "README.md":
            return f"[{label}](index.md{section})"
        if target.parent in (DOCS, DOCS / "tutorials") and target.suffix in (".md", ".ipynb"):
            return f"[]({path}{section})" if label.endswith(target.name) else match.group()
        inside = target.relative_to(REPOSITORY).as_posix()
        return f"`{inside}`" if inside.rstrip("/").endswith(label.rstrip("/")) else f"{label} (`{inside}`)"

    return LINK.sub(renamed, text)


def pages_that_are_not_in(index: str) -> list[str]:
    """Names of the pages that no line of the index names, in alphabetical order."""
    return sorted({path.stem for path in DOCS.glob("*.md")} - {*index.split(), "index"})


def thing_called(name: str) -> object:
    """Return what a dotted name stands for, also where it is a short name of what lives elsewhere; None if nothing."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return None


def setup(app: Sphinx) -> None:
    """Read pages, and what they include from elsewhere in the repository, without links that lead out of the site."""
    shutil.rmtree(DOCS / "reference", ignore_errors=True)  # pages of modules, which each build writes anew

    def page(app: Sphinx, docname: str, content: list[str]) -> None:
        if docname == "index":
            content[0] = content[0].replace("OTHER PAGES", "\n".join(pages_that_are_not_in(content[0])))
        content[0] = name_files_that_are_no_pages(content[0], (DOCS / docname).parent)

    def included(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
        content[0] = name_files_that_are_no_pages(content[0], (DOCS / path).resolve().parent)

    def docstring(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
        text = OPTION.sub(lambda found: f"    * ``{found[1]}``: {' '.join(found[2].split())}", "\n".join(lines))
        parts = LITERAL.split(INDENTED_BLOCK.sub("::", text))
        lines[:] = "".join(part if part.startswith("``") else MARKUP.sub(r"\\\g<0>", part) for part in parts).split(
            "\n"
        )

    from jupyter_cache.executors import utils

    # a shell command's output comes in pieces of 100 characters
    utils.executenb = functools.partial(utils.executenb, coalesce_streams=True)

    def home(app: Sphinx, environment: BuildEnvironment, node: addnodes.pending_xref, label: Element) -> Element | None:
        if node.get("refdomain") != "py":
            return None
        thing = thing_called(node["reftarget"])
        full_name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
        if full_name == node["reftarget"]:
            return None
        python = environment.domains.python_domain
        return python.resolve_xref(environment, node["refdoc"], app.builder, "obj", full_name, node, label)

    def foreign(app: Sphinx, kind: str, name: str, thing: object, skipped: bool, options: object) -> bool | None:
        """Leave out methods that another package puts into a class of ours."""
        ours = not inspect.isfunction(thing) or thing.__module__.partition(".")[0] == "continual_metaopt"
        return None if ours else True

    app.connect("autodoc-skip-member", foreign)
    app.connect("missing-reference", home)
    app.connect("autodoc-process-docstring", docstring, priority=100)  # before Napoleon
    app.connect("source-read", page)
    app.connect("include-read", included)
