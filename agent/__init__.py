"""The daemon on a host: writes variants into target files, keeps them there, reports what happened."""

import os

# Both are read once, when grpc is imported: hooks and checks are spawned, never forked into Python code, and
# what fails in the transport is told by the call that failed, not on standard error besides.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
