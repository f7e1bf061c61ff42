"""The scheduler: queues, token budget, KV-block and prefix-cache metadata, the life cycle of every sequence.

Everything here except `main` and its `kv_publisher` is pure: time comes in as an argument, nothing sleeps, nothing does
I/O. So the same code runs in the server, in property tests and in a simulator.
"""
