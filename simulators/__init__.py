"""Simulated devices and days, for trying policies where no device is at hand. Nothing here imports `policies`."""
