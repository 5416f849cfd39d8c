"""Train, understand and trust a GPT-3 (Brown et al. 2020) in JAX."""

__version__ = "0.2.0"
