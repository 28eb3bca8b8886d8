-- The host's clock less the control plane's, in microseconds, as its last heartbeat had it; null: not told yet.
alter table agent add column clock_skew integer;
