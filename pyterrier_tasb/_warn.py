"""Warnings name the line of the caller's own code."""
from __future__ import annotations

import sys
import warnings

_BETWEEN = {'pyterrier_tasb', 'pyterrier', 'transformers', 'torch', 'contextlib', 'functools'}


def warn(message: str) -> None:
    """Warn at the innermost line that is neither ours nor of a library through which we were called."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get('__name__')).partition('.')[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
