"""Models written for Triton's Python backend, unchanged: a class ``TritonPythonModel``.

They import ``triton_python_backend_utils``, which exists in their child process alone (``utils``),
and are given requests, not rows. The child and the server exchange messages at any time
(``wire``): a decoupled model answers when it likes, and a model may call other models (business
logic scripting) while it executes.
"""
