"""How a command ends that did not do what was asked: one line, and the status of the process."""

import errno
import os
import sys

from keras_distill import _files
from keras_distill import _memory
from keras_distill import _terminal

STRAYED = 1
USAGE_ERROR = 2
INTERRUPTED = 130
MOST_CHARACTERS = 600
MOST_OF_A_REASON = 200
OURS = (ValueError, TypeError, OSError, ImportError, RuntimeError)
RESUMABLE = ("demo", "train", "compare", "quantize", "cache")


def interrupted(arguments):
    """Says after Ctrl-C how to go on; returns the status.

    Args:
        arguments: What the command line was given, the command first.
    """
    if arguments[0] not in RESUMABLE:
        way = "Nothing is half-written: the same command begins anew."
    elif "--restart" in arguments:
        way = "What is finished is kept: the same command without --restart goes on from there."
    else:
        way = "What is finished is kept: the same command goes on from there."
    start = "\n" if sys.stderr.isatty() else ""  # the line has a bar or a ^C on it
    print(f"{start}Interrupted. {way}", file=sys.stderr)
    return INTERRUPTED


def told(error, debug=False):
    """Says what was wrong; returns the status, or raises again what the user cannot mend.

    Args:
        error: An exception that is being handled.
        debug: Whether the user wants its traceback.
    """
    of_usage = hasattr(error, "format_message")
    known = isinstance(error, OURS) or _memory.is_out_of_memory(error) or _files.lacks_room(error)
    if not of_usage and (debug or not known):
        raise
    line = _usage(error) if of_usage else f"keras-distill: {_line(error)}"
    print(_terminal.wrapped(line, sys.stderr), file=sys.stderr)
    return STRAYED if type(error).__name__ == "ParityError" else USAGE_ERROR


def _usage(error):
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "keras-distill"
    message = " ".join(error.format_message().split())
    return f"{command}: {message.rstrip('.?')}. See `{command} --help`."


def _line(error):
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and str(error.strerror).startswith("Expected"):
        message = f"{error.strerror} ({error.filename})."  # ours; without its number
    if _memory.is_out_of_memory(error):
        return (
            f"Expected enough memory. Received: {message[:MOST_OF_A_REASON]}. Choose a smaller "
            "--batch-size (--restart makes it a run's), smaller or fewer images (--image-size, "
            '--limit) or networks; in Python there are `teacher_dtype="bfloat16"` and '
            "`kd.data.TeacherCache` too."
        )
    number = _files.lacks_room(error)
    if number is not None and "Expected" not in message:
        place = f" for {error.filename!r}" if getattr(error, "filename", None) else ""
        return (
            f"Expected room on the disk{place}. Received: {os.strerror(number)} "
            f"({errno.errorcode[number]}). What is written stays, and nothing is half-written: "
            "make room, and give the same command again."
        )
    if len(message) > MOST_CHARACTERS:
        message = message[: MOST_CHARACTERS - 3] + "..."
    if not message.startswith("Expected"):
        message += " (--debug shows where.)"
    return message
