"""What the benchmarks share: the machine, rounds in turn, load, servers, models, and the page of results."""
