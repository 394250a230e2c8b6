"""What happens when something breaks?   `python -m loadtest.faults` takes the figures in full."""
