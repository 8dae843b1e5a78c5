"""gRPC interface: the only package that imports grpc and the messages of the contract."""
