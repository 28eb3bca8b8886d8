"""What the control plane and the agent must agree on; imports neither."""

from importlib.metadata import version

VERSION = version("variantd")
