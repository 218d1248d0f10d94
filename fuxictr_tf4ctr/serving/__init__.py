"""A trained run at work: scores of raw rows, folders to serve from."""
