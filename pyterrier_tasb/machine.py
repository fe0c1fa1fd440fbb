"""What a result was computed on, in one line."""
from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ('pyterrier-tasb', 'pyterrier', 'pyterrier-dr', 'torch', 'transformers')


def hardware() -> str:
    """Processor, cores and GPU."""
    import torch
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return f'{_processor()}, {os.cpu_count()} cores{gpu}'


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """Python and those of the packages that are installed."""
    found = [f'Python {platform.python_version()}']
    for name in packages:
        try:
            found.append(f'{name} {version(name)}')
        except PackageNotFoundError:
            pass
    return ', '.join(found)


def _processor() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as lines:
            return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
