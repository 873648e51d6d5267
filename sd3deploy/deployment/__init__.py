"""Bring the loaded SD3 model to the text encoder that the user chose, without a restart."""

from __future__ import annotations

from sd3deploy.deployment.deployment import Deployment, Host, LoadProgress, Progress, Wanted

__all__ = ["Deployment", "Host", "LoadProgress", "Progress", "Wanted"]
