"""Command line: what the rules of the workflow call, one verb per job."""
