"""A reproducibility suite for U2PL (CVPR 2022)."""
