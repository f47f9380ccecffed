"""Which images are labelled: drawn, published, audited."""
