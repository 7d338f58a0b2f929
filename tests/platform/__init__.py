"""What gpasst assumes of Linux and of gevent's loop, one file for each thing, executed against the running kernel.

Nothing here calls the code that rests on it: where one of these fails, the platform differs, not gpasst.
"""
