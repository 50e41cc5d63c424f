"""What the field compares with, on the same UNet, samplers and noise: one file a method."""
