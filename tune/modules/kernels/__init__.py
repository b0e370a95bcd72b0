"""Kernels for devices that torch alone does not use fully; imported where such a device is at hand, never before."""
