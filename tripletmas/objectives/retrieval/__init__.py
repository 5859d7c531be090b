"""Retrieval: a query finds items of its class, by a metric loss on raw embeddings."""
