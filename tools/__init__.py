"""Generators that are not shipped: the stubs, the generated pages of docs/ and the heat map."""
