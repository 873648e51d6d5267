"""What a person sees: the panel, the settings, the sentences of the page and their language."""
