"""What long work says of itself, where its progress bars are: results alone go to standard output."""
import sys

import pyterrier as pt


def say(message: str) -> None:
    """Print a line above the progress bars."""
    pt.tqdm.write(message, file=sys.stderr)
