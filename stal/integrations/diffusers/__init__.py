"""Regional, time-weighted attention in pipelines of diffusers, without changing them.

from stal.integrations.diffusers import regional_attention

with regional_attention(pipe, prompt):
    image = pipe(prompt, num_inference_steps=30).images[0]
"""

from stal.integrations.diffusers.patch import disable, enable, regional_attention
from stal.integrations.diffusers.regions import Regions, prepare

__all__ = ["Regions", "disable", "enable", "prepare", "regional_attention"]
