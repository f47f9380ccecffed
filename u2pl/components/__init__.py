"""The building blocks of section 3 of the paper, one file each, under the paper's names."""
