"""The package that extensions import from: the part of SD.Next's `modules` that this extension leans on."""
