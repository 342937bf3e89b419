"""glscl: encode every frame and caption with CLIP once; then train and judge text-video retrieval heads in seconds."""

__version__ = "0.1.0"
