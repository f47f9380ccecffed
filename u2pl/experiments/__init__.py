"""WHAT to run: typed params, and the grid that turns table cells into runs. Never imports torch."""

from u2pl.experiments.grid import figure_cells, load_suite, published_list, scale_names
from u2pl.experiments.suite import RunSpec, Suite

__all__ = ["RunSpec", "Suite", "figure_cells", "load_suite", "published_list", "scale_names"]
