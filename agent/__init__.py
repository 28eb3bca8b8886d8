"""The daemon on a host: writes variants into target files, keeps them there, reports what happened."""
