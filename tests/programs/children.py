"""Processes that are killed at their moment: forked after the imports, before TensorFlow runs.

So that a moment falls into the work and not into the imports, which take longer than it.
"""

import os
import resource
import signal
import sys
import time
import traceback

FAILED = 1


def start(work, *arguments, limit=None):
    """Starts `work(*arguments)`, which returns a status, in a process of its own; its number.

    Args:
        limit: Bytes that a file of the process may have: a disk that is full.
    """
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    status = FAILED
    try:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        status = work(*arguments) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def end(number):
    """Waits for a process: its status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def run(work, *arguments, limit=None):
    """Starts a process and waits for it."""
    return end(start(work, *arguments, limit=limit))


def timed(work, *arguments):
    """Runs a process that must not fail; its seconds."""
    begun = time.perf_counter()
    status = run(work, *arguments)
    assert status == 0, status
    return time.perf_counter() - begun


def stop(work, *arguments, when, by=signal.SIGKILL):
    """Starts a process and sends it a signal: `(as end, its seconds)`.

    Args:
        when: A function of the seconds since its start that says whether to send it now.
    """
    begun = time.perf_counter()
    number = start(work, *arguments)
    while not when(time.perf_counter() - begun):
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), time.perf_counter() - begun
        time.sleep(0.002)
    os.kill(number, by)
    return end(number), time.perf_counter() - begun


def killed(kills, length, work, place):
    """Kills processes at moments spread evenly over the length of an undisturbed one.

    A process that ends before its moment tells how long one takes now that the machine has less
    to do, and another one is killed in its stead.

    Args:
        kills: How many.
        length: Seconds of an undisturbed process.
        work: A function of a path.
        place: A function of a number that gives a path to work in.

    Yields:
        The paths of processes that were killed at work.
    """
    number = 0
    for i in range(kills):
        status = None
        while status != -signal.SIGKILL:
            path, moment = place(number), (i + 0.5) / kills * length
            number += 1
            status, seconds = stop(work, path, when=lambda now, moment=moment: now >= moment)
            assert status in (0, -signal.SIGKILL) and number < 2 * kills + 2, (status, number)
            length = min(length, seconds) if status == 0 else length
        yield path
