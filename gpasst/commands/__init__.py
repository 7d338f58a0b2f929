"""What the console script runs: options, the process itself, serving a guest, the demo."""
