"""What does a gateway add to a model server that takes no time?   See `python -m loadtest.overhead --help`."""
