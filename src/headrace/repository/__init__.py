"""Where models come from: layouts, conversion, pulling, checks before loading."""
