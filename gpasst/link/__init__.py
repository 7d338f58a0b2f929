"""The guest side: frames in, frames out.

* `packets`: what a frame from the guest is (pure).
* `fragments`: IP fragments put together again (pure).
* `superframes`: superframes cut into the frames that the wire would carry (pure).
* `tap`: the tap device.
* `capture`: the pcap file.
"""
