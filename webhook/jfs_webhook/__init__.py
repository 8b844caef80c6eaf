"""The admission webhook: it adds the JuiceFS sidecar to pods that use volumes of our driver.

A review flows review.py → skip.py → resolve.py (reads claims through api.py) → inject.py (pure) → review.py. Beside it,
trust.py keeps the webhook's own certificate authority, and server.py serves both over HTTPS and plain HTTP.
"""
