"""The Isogloss server: texts in any language in, vectors of one shared space out, over gRPC."""
