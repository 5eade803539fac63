"""An export behind an OpenAI-compatible chat endpoint: requests, batches of them, HTTP."""
