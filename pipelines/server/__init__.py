"""The network door: an OpenAI-compatible server over one backend, with keys, limits and metrics.

`settings` holds the limits, `app` builds the ASGI application, `process` runs it until it is told
to stop. Imported by nobody but `crossread serve`.
"""
