"""The method inside other people's programs; nothing else of `stal` imports these."""
