"""Parquet files -> the rows that are still to do."""
