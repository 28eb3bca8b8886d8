"""The edges: REST, operator gRPC, and the agents' stream; decode, call a service, encode."""
