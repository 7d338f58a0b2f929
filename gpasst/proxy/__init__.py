"""What drives a proxy: workers, timers, listeners, the session of a guest, and the wiring."""
