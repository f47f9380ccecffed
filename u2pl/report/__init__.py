"""From evaluations to the numbers of the paper's tables."""

from u2pl.report.cells import collect, write_cells
from u2pl.report.tables import write_table

__all__ = ["collect", "write_cells", "write_table"]
