"""The server under load while its processes die, stop, are flooded, left and sent noise: does it keep its word?"""
