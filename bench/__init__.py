"""One module for each number in the pages: `run(small)` measures and returns a dictionary."""
