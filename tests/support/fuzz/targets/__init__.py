"""What is fuzzed: each module has `take`, which takes any bytes, and raises only for a fault."""
