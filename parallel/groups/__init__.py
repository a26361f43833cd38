"""Groups of ranks as Ray actors: started, watched, rebuilt and leased."""
