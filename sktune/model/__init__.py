"""The one module that is trained: frozen backbone, tuning method and head together; in a run and from Python."""
