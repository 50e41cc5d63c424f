"""Many requests at once: continuous batching over denoising steps."""

from stal.batch.engine import Engine
from stal.batch.loop import DeadlineExceeded, EngineClosed
from stal.batch.request import Request
from stal.drawing import Result

__all__ = ["DeadlineExceeded", "Engine", "EngineClosed", "Request", "Result"]
