"""From upstream servers to files: fetching, accounts, unpacking."""
