"""Weights in and out: other projects' names and files, the hub, published weights, heads and positions that differ."""

from deit_jax.weights.card import Card, Weights
from deit_jax.weights.read import create_model, load_weights, open_model, read_weights
from deit_jax.weights.surgery import adapt

__all__ = ["Card", "Weights", "adapt", "create_model", "load_weights", "open_model", "read_weights"]
