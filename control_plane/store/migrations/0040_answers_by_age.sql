-- Answers kept under idempotency keys, by age.
create index idempotency_by_age on idempotency (created_at);
