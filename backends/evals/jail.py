"""How is a program that a model wrote isolated?   A script: `python -I -S -B jail.py FOLDER SECONDS MEGABYTES`.

Reads the program from stdin, runs it in a child, and prints one line of JSON: {"passed": bool, "why": str, "held":
[...]}. `held` names the isolation that the kernel allowed: `processes` (a PID namespace: what the program starts dies
with it), `network` (an empty network namespace), `files` (Landlock: it writes in FOLDER only). Limits on time, memory,
file size and open files always apply. It does not stop a deliberate attack: run evaluations where no secret can be
read.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
import traceback

NEW_USER, NEW_IPC, NEW_PID, NEW_NET = 0x10000000, 0x08000000, 0x20000000, 0x40000000
NO_NEW_PRIVILEGES = 38
PROCESSES = 32  # the most processes and threads of a program
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's system calls
# By Landlock version, the bits of the rights to write, remove and make files; later also to move and truncate.
CHANGES = {1: 0b1111111110010, 2: 0b11111111110010, 3: 0b111111111110010}
LIBC = ctypes.CDLL(None, use_errno=True)


def limit(seconds: float, megabytes: int) -> None:
    """Limits memory, CPU time, file size, open files and core dumps of this process and its children."""
    wanted = {
        resource.RLIMIT_AS: megabytes << 20,
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_FSIZE: 1 << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for which, most in wanted.items():
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (most, most) if hard == resource.RLIM_INFINITY or most < hard else (hard, hard))


def part() -> list[str]:
    """Enters new PID, IPC and network namespaces if the kernel allows it. Returns the names for `held`."""
    if LIBC.unshare(NEW_USER | NEW_IPC | NEW_PID | NEW_NET) == 0 or LIBC.unshare(NEW_IPC | NEW_PID | NEW_NET) == 0:
        return ["processes", "network"]
    return []


def seal(folder: str) -> list[str]:
    """Restricts this process to changing files in the folder, if the kernel has Landlock. Returns the name for
    `held`."""
    version = LIBC.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1 or LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return []
    rights = CHANGES[min(version, 3)]
    handled = ctypes.c_uint64(rights)
    rules = LIBC.syscall(CREATE_RULESET, ctypes.byref(handled), 8, 0)
    place = os.open(folder, os.O_PATH)
    allowed = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
    if rules < 0 or LIBC.syscall(ADD_RULE, rules, 1, allowed, 0) or LIBC.syscall(RESTRICT_SELF, rules, 0):
        return []
    return ["files"]


def child(program: str, answer: int, nothing: int) -> None:
    """Runs the program, writes "passed" or its error to the pipe `answer`, and exits. `nothing`: /dev/null."""
    os.setsid()
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
    try:
        exec(compile(program, "answer.py", "exec"), {"__name__": "__main__"})  # noqa: S102  (what this file is for)
        said = "passed"
    except BaseException as error:  # noqa: BLE001  (any error is a result)
        said = "".join(traceback.format_exception_only(error)).strip()[-300:]
    os.write(answer, said.encode(errors="replace"))
    os._exit(0)


def main() -> None:
    folder, seconds, megabytes = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    program = sys.stdin.read()
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    limit(seconds, megabytes)
    held = part() + seal(folder)
    heard, answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(heard)
        child(program, answer, nothing)
    os.close(answer)
    ready = select.select([heard], [], [], seconds)[0]
    said = os.read(heard, 400).decode(errors="replace") if ready else f"not done after {seconds:g} s"
    for end in (os.kill, os.killpg):
        try:
            end(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.waitpid(pid, 0)
    print(json.dumps({"passed": said == "passed", "why": said or "ended without a word", "held": held}))


if __name__ == "__main__":
    main()
