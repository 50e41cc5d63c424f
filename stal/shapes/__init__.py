"""The bundled world of coloured shapes: scenes, captions, an exact detector."""
