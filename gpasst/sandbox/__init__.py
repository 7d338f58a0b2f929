"""What a process of gpasst gives up once it is set up: namespaces, files, capabilities, system calls.

NOTE: the process that keeps a namespace imports this after it has executed `gpasst.helper.pool`, so nothing here
imports what takes long or much memory, such as typing.
"""
