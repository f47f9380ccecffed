"""Training and evaluation of one run; knows no method by name beyond what it is asked to build."""

from u2pl.engine.evaluate import evaluate_run
from u2pl.engine.train import train

__all__ = ["evaluate_run", "train"]
