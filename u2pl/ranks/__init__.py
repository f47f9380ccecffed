"""What several processes of one training need: collectives, layers that span ranks, launching, stopping."""
