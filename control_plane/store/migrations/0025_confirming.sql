-- Applied, while the health window of its host runs.
alter table deployment add column confirming integer not null default 0;
