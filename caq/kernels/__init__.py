"""Integer kernels: `reference` (numpy) defines what is right."""
