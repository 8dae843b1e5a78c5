"""Generated from proto/isogloss/v1/embedding.proto by `make proto`; never edited."""
