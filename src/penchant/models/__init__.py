"""Models and tokenizers: load, adapt, make new, save; any Hugging Face decoder."""
