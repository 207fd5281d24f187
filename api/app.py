"""`api.app:app`, the control plane for ASGI servers and hosts that want one by name. Nothing else lives here."""

from api.door import create_app

app = create_app()
