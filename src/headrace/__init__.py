"""headrace: the inference system around a model."""

__version__ = "0.1.0"
