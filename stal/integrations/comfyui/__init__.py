"""Nodes for ComfyUI: regions of a picture that attend to prompts of their own.

`stal comfyui PATH` makes a ComfyUI find them. Everything here runs inside ComfyUI, whose modules
are imported where they are used.
"""
