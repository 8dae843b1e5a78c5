"""Models that run at a provider: Cohere, OpenAI, and other servers that offer the API of OpenAI."""
