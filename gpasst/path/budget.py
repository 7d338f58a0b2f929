"""How much one step of the data path may move before others get their turn.

A step ends when it has moved its number of frames or batches, or when its time is over, whichever comes first.
"""

from __future__ import annotations

STEP_SECONDS = 0.002  # of any step
BACKLOG_SECONDS = 0.0005  # of a step that sets up new state, so that frames of known flows wait no longer
FRAMES_PER_STEP = 128  # from the tap
RECEIVES_PER_STEP = 2  # from a stream
BATCHES_PER_STEP = 4  # from a host socket
