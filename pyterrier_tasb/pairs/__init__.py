"""What to learn from: scored (query, positive, negative) pairs on disk, and where they come from."""
from .store import ScoredPairs

__all__ = ['ScoredPairs']
