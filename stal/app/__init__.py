"""The server: OpenAI's interface for images, and the page with what it calls."""
