"""Whom to imitate: teachers of pairs and of whole batches."""
from .binding import bind_in_batch_teacher, in_batch_teacher_of
from .cached_scorer import CachedScorer
from .late_interaction import LateInteraction
from .plan_scores import TeacherScores
from .scorer import ScorerTeacher
from .weighted import WeightedSum

__all__ = ['CachedScorer', 'LateInteraction', 'ScorerTeacher', 'TeacherScores', 'WeightedSum', 'bind_in_batch_teacher',
           'in_batch_teacher_of']
