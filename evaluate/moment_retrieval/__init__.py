"""When in its video a caption happens, beside when people say it does."""
