-- Keys end: at a moment that was said when they were made, or when somebody takes them away. A key that was
-- taken away stays on record, for the audit log names it.
alter table api_key add column expires_at integer;
alter table api_key add column revoked_at integer;
alter table api_key add column last_used_at integer;
