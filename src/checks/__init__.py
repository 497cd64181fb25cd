"""Checks of datafiles before training: check_data.py prints what `datafiles.check` finds."""
