"""Load generation and the small clients that `headrace bench` uses."""
