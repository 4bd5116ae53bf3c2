"""Exact, reproducible KL divergence over Dask arrays."""
