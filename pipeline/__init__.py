"""Many rows: Parquet in, Parquet out, through Ray Data."""
