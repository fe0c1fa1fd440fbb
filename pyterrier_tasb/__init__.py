__version__ = '0.1.0'
__doc__ = """Dense retrieval for PyTerrier, trained with TAS-Balanced sampling and two teachers.

Names are loaded when first used, so that importing the package costs nothing: no torch, no Java, no network.
"""

from importlib import import_module

# Public name -> the module, below this package, that defines it.
_EXPORTS = {
    'TasBalanced': 'tasbalanced',
    'Training': 'training.config',
    'ScoredPairs': 'pairs',
    'QueryClusters': 'sampling',
    'BatchPlan': 'sampling',
    'LateInteraction': 'teachers',
    'ScorerTeacher': 'teachers',
    'WeightedSum': 'teachers',
    'TeacherScores': 'teachers',
    'TextStore': 'texts',
    'Encoder': 'encoding',
    'TokenStore': 'encoding',
    'minilm': 'packaged',
}
_SUBMODULES = {'losses': 'training.losses', 'plots': 'plots', 'pydocs': 'pydocs'}

__all__ = [*_EXPORTS, *_SUBMODULES]


def __getattr__(name: str) -> object:
    """Import `name` when it is first asked for, and keep it."""
    if name in _SUBMODULES:
        value = import_module(f'{__name__}.{_SUBMODULES[name]}')
    elif name in _EXPORTS:
        value = getattr(import_module(f'{__name__}.{_EXPORTS[name]}'), name)
    else:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The names that the package defines or would load."""
    return sorted({*globals(), *__all__})
