"""How does the program start?"""

import gc


def main() -> None:
    """The command line. Its imports make no garbage, and looking for some was a quarter of the start."""
    gc.disable()
    from gateway.cli import main as run  # noqa: PLC0415  the collector first

    gc.freeze()
    gc.enable()
    run()


if __name__ == "__main__":
    main()
