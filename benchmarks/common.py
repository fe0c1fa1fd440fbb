"""What every benchmark prints: the machine, the versions, medians of interleaved runs and their ratios."""
from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pyterrier as pt

from pyterrier_tasb.machine import PACKAGES, hardware, versions

_PACKAGES = (*PACKAGES, 'sentence-transformers', 'numpy', 'faiss-cpu')


def machine() -> str:
    """One line: hardware, threads, versions."""
    import torch
    return f'{hardware()}, {torch.get_num_threads()} threads; {versions(_PACKAGES)}'


def peak_memory() -> float:
    """Peak resident memory of this process in GB."""
    status = Path('/proc/self/status')
    if status.exists():   # what getrusage says includes the parent's peak, where it was forked off
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def computes(row: str) -> bool:
    """Whether this CPU can be asked for the row of a table: bf16 where it does not multiply in it takes for ever."""
    import torch  # here, so that scale.py does not count what it takes as memory of the pairs

    from pyterrier_tasb.encoding.precision import has_bf16
    return 'bf16' not in row or has_bf16(torch.device('cpu'))


def interleaved(variants: Mapping[str, Callable[[int], object]], rounds: int,
                warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each variant in each round; all run once before any runs twice, so that drift hits all alike.

    Args:
        variants: Name → what is timed; it gets the round's number.
        rounds: Rounds that count.
        warm_up: Rounds before them that do not.
    """
    import torch
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in pt.tqdm(range(warm_up + rounds), desc='rounds'):
        for name, run in variants.items():
            start = time.perf_counter()
            run(number)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: Mapping[str, list[float]], work: float, unit: str, peers: Mapping[str, str]) -> None:
    """Print medians as a table; a ratio is the median over rounds of peer's seconds / ours, paired by round.

    Args:
        title: Heading.
        seconds: Of :func:`interleaved`.
        work: Units done in one round.
        unit: Their name.
        peers: Row → the row it is compared with.
    """
    rows = []
    for name, times in seconds.items():
        peer = peers.get(name)
        ratios = [theirs / ours for ours, theirs in zip(times, seconds[peer])] if peer else []
        rows.append({'': name, f'{unit}/s': f'{work / statistics.median(times):.1f}',
                     'rounds': len(times), 'spread': f'{(max(times) - min(times)) / statistics.median(times):.0%}',
                     'ratio': f'{statistics.median(ratios):.2f}×' if ratios else '', 'against': peer or ''})
    print(f'\n## {title}\n\n{markdown(pd.DataFrame(rows))}\n')


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a table in Markdown."""
    lines = [f'| {" | ".join(map(str, frame.columns))} |', '|---' * len(frame.columns) + '|']
    return '\n'.join([*lines, *(f'| {" | ".join(map(str, row))} |' for row in frame.values.tolist())])
