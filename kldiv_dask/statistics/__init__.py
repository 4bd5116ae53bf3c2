"""Mergeable, exact states of what is measured at positions: no Dask, and no files."""
