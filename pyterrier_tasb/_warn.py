"""Warnings name the line of the caller's own code."""
from __future__ import annotations

import os
import sys
import sysconfig
import warnings

_OURS = os.path.dirname(__file__)
_PYTHONS = tuple(sysconfig.get_path(name) for name in ('stdlib', 'platstdlib'))
_OTHERS = ('site-packages', 'dist-packages')


def warn(message: str) -> None:
    """Warn at the innermost line that is neither ours nor of a library through which we were called.

    A thread of a pool's has no such line: there it is the pool's own.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_between(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _is_between(file: str) -> bool:
    return file.startswith((_OURS, *_PYTHONS, '<frozen')) or any(place in file for place in _OTHERS)
