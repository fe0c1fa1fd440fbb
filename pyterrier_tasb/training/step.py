"""The loss of a batch: captured as a CUDA graph where that can be, in as much memory as there is."""
from __future__ import annotations

from functools import cached_property

import torch

from .._locks import world_size
from .._progress import say
from .._warn import warn
from ..encoding import Encoder
from ..encoding.gradcache import cached_forward
from ..encoding.transfer import moved
from .batches import TrainingBatch
from .captured import CapturedLoss, CaptureError
from .config import Training
from .dual import dual_loss
from .fallbacks import Fallbacks


class StepLoss:
    """(encoder, perhaps wrapped for several processes; batch) → the loss and its parts.

    Args:
        encoder: What is trained.
        training: Hyper-parameters.
        fallbacks: What is done without since memory was too small.
        who: The student's name, for messages.
    """

    def __init__(self, encoder: Encoder, training: Training, fallbacks: Fallbacks, who: str) -> None:
        self.encoder, self.training, self.fallbacks, self.who = encoder, training, fallbacks, who

    def close(self) -> None:
        """Free the memory of captured steps."""
        self.__dict__.pop('_captured', None)

    def vectors(self, module: torch.nn.Module, batch: TrainingBatch) -> torch.Tensor:
        """float32[T, D], of a batch's distinct texts, scaled."""
        limit = self._micro_batch_tokens(batch.step)
        vectors = module(batch.tokens) if limit is None else cached_forward(module, batch.tokens, limit)
        return self._scaled(vectors)

    def _scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        """Score = scale × cosine, shared between the two sides so that vectors stay symmetric."""
        return vectors * self.training.scale ** 0.5 if self.encoder.normalize else vectors

    def _micro_batch_tokens(self, batch: int) -> int | None:
        return self.fallbacks.micro_batch_tokens(batch, self.training.micro_batch_tokens)

    def save_memory(self, first: int, batch: TrainingBatch | None) -> bool:
        """Less memory from a batch on, with the same gradients: no captured steps, then half the tokens at a time.

        False where a text alone is too much, and where the in-batch teacher's are.
        """
        if self.__dict__.get('_captured') is not None:
            # a batch that cannot be made is asked for while the one before it waits to be learnt from
            self._capture_no_more(max(0, first - 1) if batch is None else first)
            say(f'{self.who}: out of GPU memory; going on without captured steps, which take more')
            return True
        if batch is None:
            return False
        lengths = batch.tokens.lengths
        half = min(self._micro_batch_tokens(batch.step) or int(lengths.sum()), int(lengths.sum())) // 2
        if half < lengths.max():
            return False
        self.fallbacks.halve(first, half)
        say(f'{self.who}: out of GPU memory with a batch of {lengths.sum():,} tokens; going on with '
            f'{half:,} at a time, which gives the same gradients and takes a third longer. '
            f'Training(micro_batch_tokens={half}) starts with that')
        return True

    def __call__(self, module: torch.nn.Module, batch: TrainingBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch and its parts."""
        whole = self._micro_batch_tokens(batch.step) is None and batch.step < self.fallbacks.plain_from
        if whole and self._captured is not None:
            try:
                return self._captured(batch)
            except CaptureError as error:
                warn(f'a step cannot be captured as a CUDA graph here ({error}): training goes on without, slower')
                self._capture_no_more(batch.step)
        vectors = self.vectors(module, batch)
        return self._loss_of(vectors[moved(batch.rows, vectors.device)], batch.margin, batch.in_batch)

    @cached_property
    def _captured(self) -> CapturedLoss | None:
        """The same on a GPU, where it can be."""
        encoder = self.encoder
        if world_size() > 1 or self.training.accumulation > 1 or encoder.amp == 'fp16' or not encoder.captures:
            return None
        return CapturedLoss(encoder, lambda vectors, *teachers: self._loss_of(self._scaled(vectors), *teachers),
                            compiled=self.training.compile)

    def _capture_no_more(self, first: int) -> None:
        """From a batch on; the memory for it is free again."""
        self._captured = None
        self.fallbacks.capture_no_more(first)

    def _loss_of(self, vectors: torch.Tensor, margin: torch.Tensor,
                 in_batch: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of float32[3B, D], queries, positives, negatives."""
        query, pos, neg = vectors.split(len(margin))
        training = self.training
        return dual_loss(query, pos, neg, margin, in_batch,
                         pairwise=training.pairwise_loss, in_batch=training.in_batch_loss,
                         pairwise_weight=training.pairwise_weight, in_batch_weight=training.in_batch_weight)
