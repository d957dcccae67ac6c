"""What headrace costs, beside what it could cost at best, in one run on one machine.

``python -m benchmarks`` (or ``make bench``) runs everything; README.md says what each
benchmark means and how to read it.
"""
