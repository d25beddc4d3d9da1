"""The released procedure in PyTorch: our own code, written from `docs` and the published facts.

It does what the release does, in the order it does it, and with its own savings (dynamic padding,
statistics that stop at the measured layer), so that ratios against it mean something.
"""
