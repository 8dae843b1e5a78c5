"""The engine: one request from validation to result. Imports neither gRPC nor a model's runtime."""
