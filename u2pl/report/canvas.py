"""What all figures have in common: paper, colours, and bytes that depend on the numbers alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from u2pl.files import atomic_path

# Okabe and Ito's colours, told apart in every common kind of colour blindness; line styles tell them apart in print.
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#E69F00", "#009E73", "#000000"
PALETTE = [BLACK, ORANGE, GREEN, BLUE, "#D55E00", "#CC79A7", "#56B4E9"]
DASHES = ["-", "--", "-.", ":"]
MARKERS = "osD^vPX"
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "grid.color": "#d0d0d0",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}
METADATA: dict[str, dict[str, None]] = {
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    ".png": {"Software": None},
}
WIDTH = 6.9  # inches: the width of a page of the paper
DPI = 200


@contextmanager
def drawn(stem: Path, height: float, width: float = WIDTH) -> Iterator[Figure]:
    """An empty figure, written to `stem`.pdf and .png after the block. Raises UserError as `atomic_path` does."""
    # The user's own matplotlibrc must not change the bytes.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        for suffix, metadata in METADATA.items():
            with atomic_path(stem.with_name(stem.name + suffix)) as temporary:
                figure.savefig(temporary, format=suffix[1:], dpi=DPI, metadata=metadata)


def plain(text: str) -> str:
    """Text as it stands: matplotlib would read between dollars as mathematics."""
    return text.replace("$", r"\$")
