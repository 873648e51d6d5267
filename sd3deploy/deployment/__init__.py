"""Bring the loaded SD3 model to the text encoder that the user chose, without a restart."""

from __future__ import annotations

from sd3deploy.deployment.deployment import Deployment
from sd3deploy.deployment.host import Host, LoadProgress
from sd3deploy.deployment.undertaking import Progress
from sd3deploy.deployment.wanted import Wanted

__all__ = ["Deployment", "Host", "LoadProgress", "Progress", "Wanted"]
