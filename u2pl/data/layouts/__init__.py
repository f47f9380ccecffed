"""Upstream's layouts: one module per data set, and `LAYOUTS`, the only place that lists them."""

from u2pl.data.layouts.cityscapes import CITYSCAPES
from u2pl.data.layouts.layout import Layout
from u2pl.data.layouts.pascal import PASCAL

LAYOUTS: dict[str, Layout] = {"pascal": PASCAL, "cityscapes": CITYSCAPES}  # by `kind` of params/datasets.yaml
