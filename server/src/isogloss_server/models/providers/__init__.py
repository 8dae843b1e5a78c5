"""Models that run at a provider: Cohere, OpenAI, and servers that speak the API of OpenAI."""
