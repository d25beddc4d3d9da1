"""Side-by-side measurements against the released procedure in PyTorch."""
