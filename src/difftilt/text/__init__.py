"""Texts with slots: templates, canvases of token ids, and rewards that read strings."""
