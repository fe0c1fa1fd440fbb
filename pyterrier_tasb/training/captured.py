"""A training step's loss and gradients as one CUDA graph: launching them one by one takes longer than computing them.

A graph has fixed shapes. Batches are brought to few of them: the number of tokens is rounded up, and what is added is
in no text. Each shape is captured when it first comes, in a tenth of a second.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._warn import warn
from ..encoding import Encoder, attention
from ..encoding.precision import autocast_dtype
from .batches import TrainingBatch

_log = logging.getLogger('pyterrier_tasb')

Parts = dict[str, torch.Tensor]
LossOfVectors = Callable[[torch.Tensor, torch.Tensor, 'torch.Tensor | None'], tuple[torch.Tensor, Parts]]
_VERSIONS = 256   # of one layer's code
_SHAPES = 32   # up to a power of two of tokens, 16 from one to the next: 2 % more tokens on average, at most 6


def rounded(tokens: int) -> int:
    """A number of tokens, and the few more that bring it to a shape that others have as well."""
    unit = max(1, 2 ** (tokens - 1).bit_length() // _SHAPES)
    return -(-tokens // unit) * unit


@dataclass
class _Graph:
    """One shape: where a batch's bytes go, and what a replay leaves."""
    bytes: torch.Tensor
    replay: Callable[[], None]
    loss: torch.Tensor
    parts: Parts
    unused: list[bool]


class CaptureError(RuntimeError):
    """A step cannot be captured here; it can be computed."""


class _Replayed(torch.autograd.Function):
    """The loss of a graph whose gradients are there already."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, loss: torch.Tensor, give: Callable[[], None]) -> torch.Tensor:
        ctx.give = give
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None]:
        ctx.give()
        return None, None, None


class CapturedLoss:
    """`batch → (loss, parts)` like the plain path, for one process and one batch a step.

    The loss's backward pass hands over gradients that were computed with it, in place of adding them up.

    Args:
        encoder: What is trained; one that :attr:`~pyterrier_tasb.Encoder.captures`.
        loss: (vectors of queries, positives and negatives [3B, D], margins, in-batch scores or None) → the scalar and
            its parts.
        compiled: Whether the encoder's layers and the loss go through `torch.compile` first, 20 to 30 seconds. Where
            that fails, they do without, which is said.

    Raises:
        CaptureError: A shape that comes for the first time cannot be captured.
    """

    def __init__(self, encoder: Encoder, loss: LossOfVectors, *, compiled: bool = False) -> None:
        self.encoder, self.loss, self.compiled = encoder, loss, compiled
        self.compiled_loss = torch.compile(loss) if compiled else loss
        self.parameters = [weights for weights in encoder.parameters() if weights.requires_grad]
        self.halves = _Halves(encoder)
        self.gradients = [torch.empty_like(weights) for weights in self.parameters]
        self.anchor = torch.zeros((), device=encoder.device, requires_grad=True)
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(encoder.device)
        self.graphs: dict[tuple, _Graph] = {}

    def __call__(self, batch: TrainingBatch) -> tuple[torch.Tensor, Parts]:
        """The loss of a batch with its gradients, and its parts."""
        values = _inputs(batch, self.encoder)
        joined = torch.from_numpy(np.concatenate([value.reshape(-1).view(np.uint8) for value in values.values()]))
        shape = tuple((name, value.shape) for name, value in values.items())
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(values, joined)
        graph = self.graphs[shape]
        graph.bytes.copy_(joined.pin_memory(), non_blocking=True)
        graph.replay()
        return _Replayed.apply(self.anchor, graph.loss, lambda: self._give(graph)), {
            name: value.clone() for name, value in graph.parts.items()}

    @contextmanager
    def _sorted_lookups(self, inputs: dict[str, torch.Tensor]) -> Iterator[None]:
        """Gradients of embeddings go where they are kept, in the order that came with the batch."""
        from ..encoding import embedding_gradients
        kept = {weights: gradient for weights, gradient in zip(self.parameters, self.gradients)}
        with ExitStack() as stack:
            for name, module in _embeddings(self.encoder.model).items():
                if embedding_gradients.can(module):
                    stack.enter_context(embedding_gradients.used(module, inputs[f'{name}_order'],
                                                                 inputs[f'{name}_bounds'], kept[module.weight]))
            yield

    def _give(self, graph: _Graph) -> None:
        for weights, gradient, unused in zip(self.parameters, self.gradients, graph.unused):
            weights.grad = None if unused else gradient

    def _capture(self, values: dict[str, np.ndarray], joined: torch.Tensor) -> _Graph:
        try:
            return self._graph(values, joined)
        except Exception as error:   # compilers, drivers and libraries have many
            problem, too_little = f'{type(error).__name__}: {error}', _out_of_memory(error)
        if too_little:   # raised here, without the error that holds what was made
            raise torch.OutOfMemoryError(problem)
        if not self.compiled:
            raise CaptureError(problem)
        warn(f'torch.compile cannot be used here ({problem}): training goes on without it')
        self.compiled = False
        return self._capture(values, joined)

    def _graph(self, values: dict[str, np.ndarray], joined: torch.Tensor) -> _Graph:
        device = self.encoder.device
        joined = joined.to(device)
        pieces = joined.split([value.nbytes for value in values.values()])
        inputs = {name: piece.view(torch.from_numpy(value[:0]).dtype).view(value.shape)
                  for (name, value), piece in zip(values.items(), pieces)}

        loss_of = self.compiled_loss if self.compiled else self.loss

        def run() -> tuple[torch.Tensor, Parts, list[torch.Tensor | None]]:
            self.halves.update()
            vectors = self.encoder.vectors_in(inputs['ids'], inputs['positions'], inputs['bounds'])[inputs['rows']]
            loss, parts = loss_of(vectors, inputs['margin'], inputs.get('in_batch'))
            return loss, parts, self.halves.gradients(loss, self.parameters)
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        self.stream.wait_stream(current)
        # a step's dropout is drawn by the replay, from the state before the capture
        try:
            with (torch.cuda.stream(self.stream), torch.random.fork_rng([device]), self.halves.used(),
                  self._sorted_lookups(inputs), _compiled(self.encoder.model, self.compiled)):
                for _ in range(2):   # what libraries and kernels set up when they are first used cannot be captured
                    run()
                # a live teacher may be at work in the thread that makes batches
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode='thread_local'):
                    loss, parts, found = run()
                    _copy([(kept, new) for kept, new in zip(self.gradients, found)
                           if new is not None and new.data_ptr() != kept.data_ptr()])
        finally:
            current.wait_stream(self.stream)   # weights and gradients may still be read there
        _log.info('captured a training step of %d tokens', len(values['ids']))
        return _Graph(joined, graph.replay, loss.detach(), {name: value.detach() for name, value in parts.items()},
                      [new is None for new in found])


def _embeddings(model: torch.nn.Module) -> dict[str, torch.nn.Module | None]:
    """Those of ids, and of positions."""
    return {'ids': model.get_input_embeddings(), 'positions': attention.position_embeddings(model)}


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether that is what went wrong; ending a capture that failed raises something else on top."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error is not None


def _inputs(batch: TrainingBatch, encoder: Encoder) -> dict[str, np.ndarray]:
    """A batch's arrays in the shape of its graph, larger items first.

    Raises:
        ValueError: A text is longer than the graph's kernels are told.
    """
    tokens, size = batch.tokens, len(batch.query)
    if tokens.lengths.max() > encoder.longest:
        raise ValueError(f'a text of {tokens.lengths.max()} tokens, where the encoder takes {encoder.longest}: cut '
                         'texts with Encoder.tokenise')
    n = len(tokens.ids)
    ids, positions = np.zeros(rounded(n), dtype=np.int64), np.full(rounded(n), encoder.first_position)
    ids[:n], positions[:n] = tokens.ids, tokens.positions(encoder.first_position)
    bounds = np.full(3 * size + 1, n, dtype=np.int32)   # a passage that comes twice is there once: fewer texts
    bounds[:len(tokens.offsets)] = tokens.offsets
    values = {'ids': ids, 'positions': positions, 'rows': batch.rows.numpy(), 'bounds': bounds,
              'margin': batch.margin.float().numpy()}
    for name in ('ids', 'positions'):
        values[f'{name}_order'], values[f'{name}_bounds'] = sorted_places(values[name])
    return values if batch.in_batch is None else {**values, 'in_batch': batch.in_batch.float().numpy()}


def sorted_places(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32[T], the places of T ids sorted by id; int32[T + 1], where each id begins in them, and the end."""
    small = ids.astype(np.uint16) if ids.max() < 2**16 else ids   # sorted by radix, several times as fast
    order = np.argsort(small, kind='stable').astype(np.int32)
    begins = np.flatnonzero(np.diff(small[order], prepend=-1))
    bounds = np.full(len(ids) + 1, len(ids), dtype=np.int32)
    bounds[:len(begins)] = begins
    return order, bounds


class _Halves:
    """The weights of linear layers in half precision, all cast at once: autocast casts each when it is used.

    Those of queries, keys and values are one tensor, for one product. What is computed is the same, and so are the
    gradients. Without autocast there are none.

    Args:
        encoder: Whose weights.
    """

    def __init__(self, encoder: Encoder) -> None:
        dtype = autocast_dtype(encoder.amp, encoder.device)
        modules = [] if dtype is None else list(encoder.modules())
        self.joints = [attention.Joint(module, dtype) for module in modules if attention.Joint.can(module)]
        joint = {part for some in self.joints for part in some.parts.values()}
        self.places = [(module, name, weights) for module in modules
                       if isinstance(module, torch.nn.Linear) and module not in joint
                       for name, weights in module.named_parameters(recurse=False) if weights.requires_grad]
        self.halves = {weights: (torch.nn.Parameter(weights.detach().to(dtype)), slice(None))
                       for *_, weights in self.places}
        for some in self.joints:
            self.halves |= {weights: (half, rows) for weights, half, rows in some.places()}

    def gradients(self, loss: torch.Tensor, of: list[torch.nn.Parameter]) -> list[torch.Tensor | None]:
        """Those of a loss, of some weights, by way of what is used in place of them."""
        places = [self.halves.get(weights, (weights, slice(None))) for weights in of]
        asked = list(dict.fromkeys(half for half, _ in places))
        found = dict(zip(asked, torch.autograd.grad(loss, asked, allow_unused=True)))
        return [None if found[half] is None else found[half][rows] for half, rows in places]

    @torch.no_grad()
    def update(self) -> None:
        """Cast the weights that are now."""
        _copy([(half[rows], weights) for weights, (half, rows) in self.halves.items()])

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model computes with them."""
        with ExitStack() as stack:
            for joint in self.joints:
                stack.enter_context(joint.used())
            for module, name, weights in self.places:
                stack.callback(setattr, module, name, weights)
                setattr(module, name, self.halves[weights][0])
            yield


def _copy(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """(to, from), in few launches: one that is given several precisions copies one by one."""
    for dtype in dict.fromkeys(source.dtype for _, source in pairs):
        torch._foreach_copy_(*map(list, zip(*(pair for pair in pairs if pair[1].dtype == dtype))))


@contextmanager
def _compiled(model: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """The model's layers compiled, for the time of a capture."""
    layers = _layers(model) if wanted else []
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        # the layers of every encoder share their code, and more than 8 versions of it would not be compiled, in silence
        with torch._dynamo.config.patch(cache_size_limit=_VERSIONS) if wanted else nullcontext():
            yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that the model repeats."""
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) > 1]
    return list(stacks[0]) if stacks else []
