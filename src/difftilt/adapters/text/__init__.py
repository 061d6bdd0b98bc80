"""Published masked language models as networks of tokens (``load_text_model``)."""
