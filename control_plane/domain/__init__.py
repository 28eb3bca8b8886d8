"""The rules of variantd, pure: values in, new values out.

Nothing in here awaits, reads a clock, logs, knows SQL or a wire format; whatever happens by chance or
by time arrives as an argument. So every rule can be tested and replayed from its inputs alone.
"""
