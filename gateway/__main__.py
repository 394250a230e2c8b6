"""How does the program start?"""

import gc
import os
import signal
import sys


def main() -> None:
    """The command line. Its imports make no garbage, and looking for some was a quarter of the start; neither do the
    records that `policy` reads, and looking through them was half of the work."""
    command = sys.argv[1:2]
    if command == ["serve"]:  # who says "read your policy" this early says it to one who is about to
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    fill()
    gc.disable()
    from gateway.cli import main as run  # noqa: PLC0415  the collector first

    gc.freeze()
    if command != ["policy"]:
        gc.enable()
    run()


def fill() -> None:
    """Opens the standard files that are closed, for our own processes, too: else connections would be in their places,
    and uvloop ends the process rather than close such a one."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)


if __name__ == "__main__":
    main()
