"""Triton model repositories: ``config.pbtxt``, its meaning here, and control at run time."""

CONFIG_PBTXT = "config.pbtxt"
"""Its name, in the folder of a model."""
