"""What the examples share as scripts: numbers that are checked, and errors that are one sentence."""
from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable


def at_least_1(text: str) -> int:
    """A whole number above 0, as a `type=` of argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r}: must be a whole number of at least 1')
    return int(text)


def run_script(main: Callable[[], None]) -> None:
    """Run a script; where it or the package refuses what it was given, it ends with that sentence alone."""
    try:
        main()
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals['__name__'].partition('.')[0] not in ('__main__', 'pyterrier_tasb'):
            raise   # another library's: its traceback says more
        raise SystemExit(str(error)) from error
