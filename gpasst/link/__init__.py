"""The guest side: frames in, frames out.

* `packets`: what a frame from the guest is (pure).
* `fragments`: IP fragments put together again (pure).
* `superframes`: superframes cut into the frames that the wire would carry (pure).
* `tap`: the tap device.
* `stream`: the stream socket to a virtual machine's qemu; `framed`: datagrams received where their frames will stand;
  `listener`: the socket where a virtual machine connects.
* `capture`: the pcap file.
"""
