"""The composition root: builds the engine and the front-ends, runs the processes."""
