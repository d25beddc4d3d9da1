"""Products, attention and convolutions, each computed as the device at hand does it fastest."""
