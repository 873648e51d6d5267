"""One module for each number in the README: `run(small)` measures and returns a dictionary."""
