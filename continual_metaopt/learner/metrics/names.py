"""Names of the diagnostics, for descriptions of runs, which never import torch: the rows in ``diagnostics.py``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

_ROW = re.compile(r'^@?diagnostic\("(\w+)"', flags=re.MULTILINE)
NAMES = tuple(_ROW.findall(Path(__file__).with_name("diagnostics.py").read_text(encoding="utf-8")))

if TYPE_CHECKING:
    Diagnostic = Literal["one of NAMES"]
else:
    Diagnostic = Literal[NAMES]
