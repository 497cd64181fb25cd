"""Pages, plots and tables of experiments."""
