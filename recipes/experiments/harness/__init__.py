"""What every experiment shares: data, models, training, the store of runs, statistics and tables."""
