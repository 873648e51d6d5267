"""The former name of the reader of what is installed, for its callers in deployment/ and webui/host/."""

from sd3deploy.installed import snapshot, version

__all__ = ["snapshot", "version"]
