"""The terminal: native code's words kept off it, our lines made to fit it."""

import contextlib
import os
import shutil
import signal
import sys
import textwrap
import threading

INTERRUPTED = 130


def is_the_command():
    """Whether this process is `keras-distill`, not a program that imports the library."""
    return os.path.basename("".join(sys.argv[:1])) == "keras-distill"


@contextlib.contextmanager
def native_output_held_back():
    """Drops what C++ writes to the process's stderr inside the block.

    TensorFlow's start-up lines and the converter's notes obey no log level, so the file
    descriptor itself is pointed elsewhere. Python's errors rise as ever.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # the process has no stderr
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def import_keras_quietly():
    """Imports Keras, and TensorFlow with it, without their start-up messages.

    It takes seconds. Ctrl-C ends the process, as nothing is begun: an interrupt raised inside
    of an import would be a traceback, or be taken by the module for a package that is missing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _ended_by_interrupt(), native_output_held_back():
        import keras  # noqa: F401


@contextlib.contextmanager
def _ended_by_interrupt():
    try:
        terminal = os.dup(2)  # the other one is held back
    except OSError:  # the process has no stderr
        yield
        return

    def end(number, frame):
        os.write(terminal, b"Interrupted before anything was begun.\n")
        os._exit(INTERRUPTED)

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        os.close(terminal)


@contextlib.contextmanager
def interrupts_noted():
    """Gives a list that is not empty after Ctrl-C, which raises `KeyboardInterrupt` as ever.

    Native code may take the exception for one of its own and go on to fail at something else:
    TensorFlow's converter does. Outside of the main thread, and where a program has its own way
    with Ctrl-C, nothing is noted.
    """
    noted = []

    def note(number, frame):
        noted.append(number)
        signal.default_int_handler(number, frame)

    own = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if own or threading.current_thread() is not threading.main_thread():
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wrapped(text, stream, indent=0):
    """A line as a terminal shows it without breaking words; the line itself for a file or a pipe.

    Args:
        text: The line.
        stream: Where it goes.
        indent: Blanks before all lines but the first.
    """
    if not stream.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.fill(
        text,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
    )
