"""The commands of the console script: their options, the process, its log, serving a guest, the demo."""
