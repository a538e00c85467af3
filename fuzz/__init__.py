"""Broken, odd and good events by the hundred thousand through the whole pipeline, and what must hold for each.

Run it with `make fuzz`. What an input is follows from the seed and the number of its batch alone. It is a part of the
checkout, not of the installed package; what must not enter: a broker, a Redis, a look into the pipeline's own steps.
"""
