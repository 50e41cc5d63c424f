"""The networks: the handwritten UNet, and what reads them from diffusers folders."""
