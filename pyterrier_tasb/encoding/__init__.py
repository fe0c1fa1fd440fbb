"""Texts to vectors: tokens on disk, padding-free forward passes, pooling, model directories."""
from .encoder import Encoder
from .token_store import TokenRows, TokenStore
from .tokens import Tokens, tokenise

__all__ = ['Encoder', 'TokenRows', 'TokenStore', 'Tokens', 'tokenise']
