"""The only package that knows the webui: the host as an adapter, the hooks, the settings, the panel, the API."""
