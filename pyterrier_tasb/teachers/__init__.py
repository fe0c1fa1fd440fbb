"""Whom to imitate: teachers of pairs and of whole batches."""
from .binding import bind_in_batch_teacher, cached_scorer

__all__ = ['bind_in_batch_teacher', 'cached_scorer']
