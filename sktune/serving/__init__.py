"""Adapters of one frozen model over HTTP: which one answers is chosen by each request."""
