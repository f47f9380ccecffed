"""Archives and lists in the upstream layouts, drawn instead of downloaded."""
