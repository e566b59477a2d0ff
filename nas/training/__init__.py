"""Training of one network: the loop, averaging, data parallelism, and what is learned."""
