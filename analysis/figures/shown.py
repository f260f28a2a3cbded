"""Figures that show themselves where they are the last value of a notebook's cell."""

import io

from matplotlib.figure import Figure

DOTS_PER_INCH = 130


class ShownFigure(Figure):
    """A figure that a notebook can show without pyplot, which alone registers Matplotlib's own figures there."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=DOTS_PER_INCH)
        return picture.getvalue()
