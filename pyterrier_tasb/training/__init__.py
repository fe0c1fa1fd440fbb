"""How weights move: hyper-parameters, batches, losses, calibration and the loop."""
from .config import Training

__all__ = ['Training']
