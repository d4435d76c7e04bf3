"""Several methods on one recipe: cells that are run once each, and the report over them.

Imports nothing heavy by itself: the command line reads its arguments from here.
"""
