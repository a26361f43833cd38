"""Finds the Parquet files of an input, and plans and reads the rows that are still to do."""
