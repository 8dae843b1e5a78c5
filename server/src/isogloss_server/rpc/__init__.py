"""The gRPC face: the only folder that knows the wire."""
