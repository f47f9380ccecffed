"""From upstream archives to training batches: synthesize, fetch, prepare, splits, augment, batches.

Importing the package does not import torch; only `augment` and `batches` need it.
"""
