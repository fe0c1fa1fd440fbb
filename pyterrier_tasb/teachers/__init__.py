"""Whom to imitate: teachers of pairs and of whole batches."""
from .binding import CachedScorer, bind_in_batch_teacher
from .late_interaction import LateInteraction
from .scorer import ScorerTeacher
from .weighted import WeightedSum

__all__ = ['CachedScorer', 'LateInteraction', 'ScorerTeacher', 'WeightedSum', 'bind_in_batch_teacher']
