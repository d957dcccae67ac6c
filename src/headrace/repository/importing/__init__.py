"""Other servers' model folders and configurations, read into ours; see ``detect.py``."""
