"""The engine: one job from check to answer. Knows neither wire nor model runtime."""
