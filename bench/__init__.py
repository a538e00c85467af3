"""The benchmark: what an event costs, how fast it is answered, and how both grow.

`streamserve bench` runs it in a checkout, against a broker and a Redis of its own on this machine; `make bench` sets
everything up first. It measures and prints; it never fails because of a figure.
"""
